"""Weights & Biases: a run of the project that ``WANDB_PROJECT`` names, ``fastseg`` by default."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from fastseg.report.trackers.base import TrackedRun, Tracker, load

_FINISH_S = 120
"""Longest wait for an upload at the end of a session; what is left lies in the run's folder."""


class Wandb(Tracker):
    """A run that all sessions share by its id; each stage is drawn over its own steps.

    Without a network (``WANDB_MODE=offline``) wandb cannot add to what an earlier session wrote:
    the files of each session then hold the whole run, and those of the last are to be synced.
    """

    def __init__(self, run: TrackedRun) -> None:
        wandb = load("wandb", "wandb", "wandb")
        self.id = run.known or secrets.token_hex(4)
        # its default wraps standard output and error, which the progress line is written on
        settings = wandb.Settings(console="off", finish_timeout=_FINISH_S)
        offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "fastseg",
            name=run.name,
            id=self.id,
            resume=None if offline else "allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=settings,
            allow_val_change=True,
        )
        self.continues = not self._run.offline
        self._places: set[str] = set()

    def write(self, place: str, values: Mapping[str, float], step: int) -> None:
        """Log the numbers over the steps of their stage, not over wandb's own count of calls."""
        axis = f"step/{place.split('/')[1]}"
        if place not in self._places:
            self._places.add(place)
            self._run.define_metric(f"{place}/*", step_metric=axis)
        self._run.log({**values, axis: step})

    def close(self, finished: bool) -> None:
        """Wait for the upload, for two minutes at most."""
        self._run.finish(exit_code=0 if finished else 1)
