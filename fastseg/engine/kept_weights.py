"""The weights that a stage leaves: the last, and the best of its validations where one is wanted.

What was best is read from the rows of the log, which survive interruptions with the states, so that
a run that was killed anywhere keeps the same networks as one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastseg.checkpoint import weights
from fastseg.checkpoint.state import TrainingStates
from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.stage_run import Session
from fastseg.models import Segmenter
from fastseg.report.metrics_log import MetricsLog

_MEAN = "Mean"  # in the rows of the mean over all subsets
_WORDS = {"mean": "mean over subsets", "full": "score with all modalities"}


@dataclass(frozen=True)
class Best:
    """The best validation of a stage so far.

    Attributes:
        step: steps that were done.
        score: mIoU over all classes, 0 to 1.
        since: validations behind it.
    """

    step: int
    score: float
    since: int


class KeptWeights:
    """Writes the weights of a stage.

    All methods are collective; rank 0 reads the log and writes.

    Args:
        context: context of the run.
        run: its folder.
        metrics: log with the rows of validations.
    """

    def __init__(self, context: RunContext, run: RunFolder, metrics: MetricsLog) -> None:
        self.context, self.ranks, self.config = context, context.ranks, context.config
        self.run, self._metrics = run, metrics

    @property
    def warning(self) -> str | None:
        """What is wrong with the split that the best network is chosen on; None if nothing is."""
        split = self.config.data.eval_split
        if not self._wanted or "test" not in split:
            return None
        return (
            f"--evaluation.best chooses a network on the split {split!r}, and its score there is "
            "too good to be reported: choose on a validation split (--data.eval-split val), and "
            "score once on the test split with python -m fastseg.evaluate --split"
        )

    @property
    def _wanted(self) -> bool:
        """True if the best network is written."""
        return self.config.evaluation.best != "none"

    def validated(self, session: Session, done: int) -> bool:
        """Write the network after a validation if it is the best so far.

        Returns:
            True if a better one was waited for long enough and the stage is to end.
        """
        best = self.best(session.name)
        if best is None:
            return False
        if best.step == done and self._wanted:
            name = session.setup.stage.learners[0]
            network, path = session.scored(name), self.run.best_file(name)
            self.ranks.first(partial(self._write, session, name, network, path, done))
        return 0 < self.config.evaluation.patience <= best.since

    def finish(self, session: Session, done: int, states: TrainingStates) -> None:
        """Write the weights of a finished stage; its training states are no longer needed."""
        states.wait()
        best = self.best(session.name)
        if best is not None and self.ranks.is_first:
            self._say(session, done, best)
        networks = {name: session.scored(name) for name in session.networks.learning}

        def write() -> None:
            for name, network in networks.items():
                self._write(session, name, network, self.run.weights_file(name), done)
            states.remove()

        self.ranks.first(write)

    def best(self, stage: str) -> Best | None:
        """The best validation of a stage; None without one, or if nothing depends on it."""
        if not self._wanted and self.config.evaluation.patience == 0:
            return None
        found = self.ranks.share(partial(self._look, stage))
        return None if found is None else Best(*found)

    def _look(self, stage: str) -> tuple[int, float, int] | None:
        """Step, score and validations since, of the best one in the log."""
        wants_mean = self.config.evaluation.best != "full"
        scores = [
            # a score that is not finite is null
            (row["step"], -math.inf if row["miou_all"] is None else row["miou_all"])
            for row in self._metrics.rows()
            if row["kind"] == "eval"
            and row["stage"] == stage
            and (row["subset"] == _MEAN) == wants_mean
        ]
        if not scores:
            return None
        # of equal ones the first
        place = max(range(len(scores)), key=lambda i: scores[i][1])
        return *scores[place], len(scores) - 1 - place

    def _write(
        self, session: Session, name: str, network: Segmenter, path: Path, done: int
    ) -> None:
        data = self.config.data
        facts = {
            "stage": session.name,
            "steps": done,
            "seed": self.config.seed,
            "size": data.eval_size or data.size,
            # so that the file alone says what the network takes
            "description": data.description,
        }
        weights.save_weights(path, network, self.context.identity(name), facts)

    def _say(self, session: Session, done: int, best: Best) -> None:
        if done < session.steps:
            say(
                f"{session.name}: ended after step {done} of {session.steps}, {best.since} "
                "validations without a better score"
            )
        if not self._wanted:
            return
        file = self.run.best_file(session.setup.stage.learners[0])
        say(
            f"{session.name}: best {_WORDS[self.config.evaluation.best]} {100 * best.score:.2f}, "
            f"after step {best.step}, kept in {file}; score it with python -m fastseg.evaluate "
            f"--checkpoint {file}"
        )
