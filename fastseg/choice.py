"""A decision and its reason: what was taken, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was decided.

    Attributes:
        value: what was taken; of a way of running a step, whether it is.
        why: the reason, for people.
    """

    value: T
    why: str
