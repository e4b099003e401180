"""Interface through which a trainer has its network scored during a stage."""

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
        """True if a score is due after ``done`` steps; at the end of a stage it always is."""

    def missing(self, session: Session, done: int) -> bool:
        """True if the scores after ``done`` steps are due, but not in the log; collective."""

    def judge_targets(self, session: Session) -> None:
        """Score the frozen networks that a stage learns from, before its first step; collective."""

    def run(self, session: Session, done: int) -> dict[str, str]:
        """Score; returns what the progress line shows."""


MakeValidator = Callable[
    [RunContext, Loader, MetricsLog, Callable[[dict[str, Any]], None]], Validator
]
"""Builds a validator from a run, its evaluation loader, its log, and another receiver of rows."""
