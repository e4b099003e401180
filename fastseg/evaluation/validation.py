"""Validation during training: the scores that go into the log and the progress line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.engine.stage_run import Session
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.protocols.modality_subsets import evaluate_subsets, limited
from fastseg.evaluation.subsets import run_subsets
from fastseg.pipelines import Batch, Loader
from fastseg.report.metrics_log import MetricsLog

VALIDATIONS_PER_STAGE = 10
TARGET_BATCHES = 50
"""Batches on which a frozen network is judged."""
TARGET_FLOOR = 0.2
"""Full-set mIoU below which a student has little to learn from a network."""


class Validation:
    """Scores the network of a stage every so many steps.

    Args:
        context: context of the run.
        loader: loader of the evaluation split.
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
        self.val_loader, self.metrics, self.board = loader, metrics, board

    def due(self, session: Session, done: int) -> bool:
        """True if a score is due after ``done`` steps; at the end of a stage it always is."""
        every = self.config.evaluation.every or max(1, session.steps // VALIDATIONS_PER_STAGE)
        return done % every == 0 or done == session.steps

    def missing(self, session: Session, done: int) -> bool:
        """True if the scores after ``done`` steps are due, but not in the log; collective.

        A run that was killed while it scored has saved the state, and scores again.
        """

        def look() -> bool:
            return not any(
                (row["kind"], row["stage"], row["step"]) == ("eval", session.name, done)
                for row in self.metrics.rows()
            )

        return self.due(session, done) and bool(self.ranks.share(look))

    def judge_targets(self, session: Session) -> None:
        """Say the full-set mIoU of the networks that a stage learns from, and warn of a weak one.

        It is that of the first samples of the evaluation split, and does not depend on the number
        of processes. A teacher that has collapsed, or that was trained on other data, is found here
        and not in the scores of its student.
        """
        data, device = self.config.data, self.context.device
        samples = min(TARGET_BATCHES * data.eval_batch_size, self.val_loader.num_samples)
        own = len(range(self.ranks.rank, samples, self.ranks.world))
        for name, network in session.networks.frozen.items():
            matrix = ConfusionMatrix(self.context.num_classes, device)
            for batch in limited(self.val_loader.batches(), own):
                images = batch.images.to(device, session.step_fn.dtype)
                with torch.no_grad():
                    matrix.update_from(network(images).logits, batch.labels.to(device))
            matrix.counts = self.ranks.total(matrix.counts)
            score = matrix.scores().miou_all
            if not self.ranks.is_first:
                continue
            what = f"{session.name}: the {name} that it learns from scores mIoU {100 * score:.1f}"
            where = f"with all modalities on {samples} samples of {data.eval_split}"
            if score < TARGET_FLOOR:
                say(
                    f"warning: {what} {where}: there is little to learn from it. Train it "
                    "longer, or check that its data, classes and normalisation are those of this "
                    "run"
                )
            else:
                say(f"{what} {where}")

    def run(self, session: Session, done: int) -> dict[str, str]:
        """Score the full set and the mean over all subsets; they go into the log and the line."""
        data, limit = self.config.data, self.config.evaluation.samples
        # whole batches of one process, so that the samples do not depend on the number of processes
        samples = -(-limit // data.eval_batch_size) * data.eval_batch_size if limit else None
        network = session.scored()
        batches: Iterator[Batch] = self.val_loader.batches()
        if samples is not None:
            own = len(range(self.ranks.rank, samples, self.ranks.world))
            batches = limited(self.val_loader.batches(), own)
        matrices = evaluate_subsets(self.context, network, batches)
        session.networks.main.train()
        scores = [matrix.scores() for matrix in matrices.values()]
        rows = {
            run_subsets(self.context)[-1].name: (scores[-1].miou_all, scores[-1].miou_present),
            "Mean": (
                sum(s.miou_all for s in scores) / len(scores),
                sum(s.miou_present for s in scores) / len(scores),
            ),
        }
        written: list[dict[str, Any]] = [
            {"kind": "eval", "stage": session.name, "step": done}
            | {"subset": subset, "miou_all": miou_all, "miou_present": miou_present}
            for subset, (miou_all, miou_present) in rows.items()
        ]
        self.metrics.append(*written)
        for row in written:
            self.board(row)
        full, mean = (100 * miou_all for miou_all, _ in rows.values())
        return {"mIoU": f"{full:.1f}", "mean": f"{mean:.1f}"}
