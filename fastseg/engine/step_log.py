"""The rows of ``metrics.jsonl`` about training, and what of them stands in the progress line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.engine.speed.host_memory import peak_mib
from fastseg.engine.stage_run import Session
from fastseg.pipelines import Batch, Loader
from fastseg.report.metrics_log import Meter, MetricsLog


class StepLog:
    """Counts what the steps of a stage used, and writes the means of their values.

    Args:
        context: context of the run.
        loader: loader of the training batches.
        metrics: the file of rows.
        board: also takes each row, see `Trackers.send`.
    """

    def __init__(
        self,
        context: RunContext,
        loader: Loader,
        metrics: MetricsLog,
        board: Callable[[dict[str, Any]], None],
    ) -> None:
        self.context, self.ranks, self.config = context, context.ranks, context.config
        self.loader, self.metrics, self.board = loader, metrics, board
        self.meter = Meter()
        self._replaced = 0.0
        self._seen: defaultdict[str, float] = defaultdict(float)
        self._reported: set[str] = set()

    def begin(self, state: Mapping[str, Any]) -> None:
        """Begin a stage; of a continued one, ``state`` has what steps without a row have left.

        On another number of processes each takes the mean over those that saved.
        """
        self.meter, self._replaced = Meter(), 0.0
        self._seen = defaultdict(float, state.get("modalities", {}))
        rows = state.get("meter", [])
        if not rows:  # nothing is known of steps before: a state of an older version
            return
        if len(rows) == self.ranks.world:
            self._replaced, *numbers = rows[self.ranks.rank]
        else:
            counts, *columns = zip(*rows, strict=True)
            self._replaced = sum(counts) if self.ranks.is_first else 0
            numbers = [sum(column) / len(rows) for column in columns]
        self.meter.restore(state["values"], numbers, self.context.device)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint: values since the last row, of all processes; collective."""
        names, numbers = self.meter.state()
        meter = self.ranks.gather_floats([self._replaced, *numbers])
        return {"meter": meter, "values": names, "modalities": dict(self._seen)}

    def report_replaced(self, batches: Sequence[Batch]) -> None:
        """Count the samples that others have replaced, and say of each why, once per process."""
        for reason in (reason for batch in batches for reason in batch.replaced):
            self._replaced += 1
            if reason not in self._reported:
                self._reported.add(reason)
                say(f"a training sample is skipped, and the next one taken: {reason}")

    def count_modalities(self, session: Session, step: int) -> None:
        """Count the modalities that the network sees in a step, or the share of its samples."""
        shares = session.step_fn.left(step, len(self.context.modalities))
        for modality, share in zip(self.context.modalities, shares, strict=True):
            self._seen[modality.name] += share

    def write(self, session: Session, done: int) -> dict[str, str]:
        """Write the row of the steps since the last one; returns what the progress line shows."""
        values = self.meter.read()
        if self.config.data.damaged == "skip":
            values["replaced_samples"] = self._replaced
            self._replaced = 0
            # every process holds its own to the limit as it meets them
            damage = self.loader.damage
            damage.check(len(self.ranks.union(damage.places())))
        values = self._over_ranks(values)
        (values["peak_mib"],) = self.ranks.reduce([peak_mib(self.context.device)], "max")
        row: dict[str, Any] = {"kind": "train", "stage": session.name, "step": done}
        row["lr"] = session.setup.rate(done - 1)
        row |= values
        row["modality_steps"] = {m.name: self._seen[m.name] for m in self.context.modalities}
        self._seen.clear()
        self.metrics.append(row)
        self.board(row)
        return {
            "loss": f"{values['loss']:.3f}",
            "images/s": f"{values['images_per_s']:.0f}",
            "data-wait": f"{100 * values['data_wait']:.0f}%",
        }

    def _over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the processes; their images/s and replaced samples add up."""
        means = dict(zip(values, self.ranks.reduce(list(values.values())), strict=True))
        added = means.keys() & {"images_per_s", "replaced_samples"}
        return means | {name: means[name] * self.ranks.world for name in added}
