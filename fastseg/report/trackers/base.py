"""What a tracker is given, and what it must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fastseg.errors import ConfigError


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker knows it.

    Attributes:
        name: the run's name.
        folder: its folder.
        config: every setting, by its path, such as ``data.size``.
        known: the id that the tracker gave the run in an earlier session; None in the first.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    known: str | None = None


class Tracker(ABC):
    """Takes the numbers of one run, in order.

    Opening one, and each of its methods, may raise anything: the run then goes on without it.

    Attributes:
        id: the tracker's own name of the run, by which a later session continues it.
        continues: whether this session adds to what earlier ones have sent; else it begins with
            nothing, and is sent the whole history.
    """

    id: str
    continues: bool = True

    @abstractmethod
    def write(self, place: str, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of a row.

        Args:
            place: kind, stage and perhaps subset of the row, such as ``eval/student/Mean``.
            values: by names that begin with ``place``.
            step: steps done in the stage; each stage counts from 0.
        """

    @abstractmethod
    def close(self, finished: bool) -> None:
        """End the session; ``finished``: nothing of the run is left to be done."""


def load(name: str, module: str, package: str) -> Any:
    """The module of a tracker's package.

    Raises:
        ConfigError: it cannot be imported; the message names the package.
    """
    try:
        return import_module(module)
    except Exception as error:
        raise ConfigError(
            f"--trackers {name} needs the package {package}, which does not import ({error}): "
            f"pip install {package}, or leave {name} out; metrics.jsonl holds the same numbers"
        ) from None
