"""MLflow: a run on the server, or in the database, that ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from fastseg.report.trackers.base import TrackedRun, Tracker, load

_PARAMS, _LETTERS = 100, 500
"""Parameters that MLflow takes at once, and letters of each that every store takes."""

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Each row waits for the server: by default a server that is gone would hold a step for long."""


class MLflow(Tracker):
    """A run of the experiment that ``MLFLOW_EXPERIMENT_NAME`` names, ``fastseg`` by default.

    It uses MLflow's client alone, so that an active run of a program around it is left alone.
    """

    def __init__(self, run: TrackedRun) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        mlflow = load("mlflow", "mlflow", "mlflow")
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient()
        if run.known is not None and self._is_there(run.known):
            self.id = run.known
            self._client.update_run(self.id, status="RUNNING")
            return
        self.continues = False
        self.id = self._client.create_run(self._experiment(), run_name=run.name).info.run_id
        params = [
            self._entities.Param(name, str(value)[:_LETTERS]) for name, value in run.config.items()
        ]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(self.id, params=params[first : first + _PARAMS])

    def _is_there(self, known: str) -> bool:
        """Whether an earlier session's run can be continued: not one that was deleted since."""
        try:
            found: Any = self._client.get_run(known)
        except Exception as error:
            # of a server that does not answer nothing is known
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return bool(found.info.lifecycle_stage == "active")

    def _experiment(self) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fastseg"
        found: Any = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def write(self, place: str, values: Mapping[str, float], step: int) -> None:
        """Log the numbers in one call."""
        now = int(1000 * time.time())
        self._client.log_batch(
            self.id,
            metrics=[self._entities.Metric(n, value, now, step) for n, value in values.items()],
        )

    def close(self, finished: bool) -> None:
        """Say how the session ended; a later one opens the run again."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")
