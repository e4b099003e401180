"""Scalars for TensorBoard, in ``tensorboard/`` of the run's folder."""

from __future__ import annotations

from collections.abc import Mapping

from fastseg.report.trackers.base import TrackedRun, Tracker, load


class TensorBoard(Tracker):
    """Event files, one per session, of which TensorBoard draws one curve."""

    id = "tensorboard"

    def __init__(self, run: TrackedRun) -> None:
        module = load("tensorboard", "torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(str(run.folder / "tensorboard"))

    def write(self, place: str, values: Mapping[str, float], step: int) -> None:
        """Write and flush the numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._writer.close()
