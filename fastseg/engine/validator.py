"""What a trainer asks of that which scores its network meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fastseg.engine.context import RunContext
from fastseg.engine.stage_run import Session
from fastseg.pipelines import Loader
from fastseg.report.metrics_log import MetricsLog


class Validator(Protocol):
    """Scores the network of a stage every so many steps."""

    def due(self, session: Session, done: int) -> bool:
        """Whether to score after ``done`` steps; the end of a stage always is."""

    def missing(self, session: Session, done: int) -> bool:
        """True if the scores after ``done`` steps are due, but not in the log; collective."""

    def run(self, session: Session, done: int) -> dict[str, str]:
        """Score; returns what the progress line shows."""


MakeValidator = Callable[
    [RunContext, Loader, MetricsLog, Callable[[dict[str, Any]], None]], Validator
]
"""Of a run, its loader of the evaluation split, its log, and what else takes each row."""
