"""The trackers of a run: opened by name, sent each row once, and left behind when they fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastseg.console import say
from fastseg.errors import ConfigError
from fastseg.pipelines.tools.whole_files import write_whole
from fastseg.report.metrics_log import MetricsLog
from fastseg.report.trackers.base import TrackedRun, Tracker
from fastseg.report.trackers.mlflow import MLflow
from fastseg.report.trackers.tensorboard import TensorBoard
from fastseg.report.trackers.wandb import Wandb

TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
}
"""What opens each tracker; its names are the values of ``--trackers``."""

STATE = "trackers.json"
"""File of a run's folder: a tracker's ``id`` of the run, and the last step sent of each place."""


class Trackers:
    """Sends the rows of ``metrics.jsonl`` to trackers; one without any does nothing.

    A row that an earlier session has sent is not sent again. A tracker that fails is reported and
    gets no more rows in this session; those that it lacks are sent when a later one opens it.

    Args:
        names: of the trackers, see `TRACKERS`.
        name: of the run.
        config: every setting of the run, by its path.
        history: the rows of the run so far, in its folder; what a tracker lacks of them is sent.

    Raises:
        ConfigError: the package of one is not installed.
    """

    def __init__(
        self, names: Sequence[str], name: str, config: Mapping[str, Any], history: MetricsLog
    ) -> None:
        folder = history.path.parent
        self._file = folder / STATE
        self._state = _read(self._file) if names else {}
        self._open: dict[str, Tracker] = {}
        for kind in dict.fromkeys(names):
            before = self._state.get(kind, {})
            run = TrackedRun(name, folder, config, before.get("id"))
            try:
                tracker = TRACKERS[kind](run)
                sent = before.get("sent", {}) if tracker.continues else {}
                self._state[kind] = {"id": tracker.id, "sent": sent}
                self._save()
            except ConfigError:
                raise
            except Exception as error:
                _warn(kind, error)
                continue
            self._open[kind] = tracker
        for row in history.rows() if self._open else ():
            self.send(row)

    def send(self, row: Mapping[str, Any]) -> None:
        """Send a row to every tracker that lacks it."""
        place = "/".join(str(row[key]) for key in ("kind", "stage", "subset") if key in row)
        values, step = scalars(place, row), row["step"]
        for kind, tracker in list(self._open.items()):
            sent = self._state[kind]["sent"]
            if step <= sent.get(place, -1):
                continue
            try:
                tracker.write(place, values, step)
                sent[place] = step
                self._save()
            except Exception as error:
                del self._open[kind]
                _warn(kind, error)

    def _save(self) -> None:
        write_whole(self._file, json.dumps(self._state, indent=1) + "\n", durable=False)

    def close(self, finished: bool) -> None:
        """End the session of every tracker."""
        for kind, tracker in self._open.items():
            try:
                tracker.close(finished)
            except Exception as error:
                _warn(kind, error)
        self._open.clear()


def scalars(place: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by name, such as ``train/student/loss``; those not finite are left out.

    Args:
        place: where they belong, the first part of their names.
        row: as `MetricsLog` has it.
    """
    counts = row.get("modality_steps", {})
    values = {name: value for name, value in row.items() if isinstance(value, float)}
    values |= {f"modality_steps/{name}": float(count) for name, count in counts.items()}
    return {f"{place}/{name}": value for name, value in values.items() if abs(value) < float("inf")}


def _read(file: Path) -> dict[str, Any]:
    """What earlier sessions have sent; nothing if the file is none of ours."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(kind): {"id": str(of["id"]), "sent": {k: int(n) for k, n in of["sent"].items()}}
            for kind, of in state.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        say(f"warning: {file} is damaged: trackers begin new runs")
        return {}


def _warn(kind: str, error: Exception) -> None:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    say(
        f"warning: {kind} gets no more numbers in this session ({said}); metrics.jsonl has them "
        "all, and when the same command continues the run, what is missing is sent"
    )
