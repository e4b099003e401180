"""A decision and its reason: what was taken, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A decision and its reason.

    Attributes:
        value: the option that was taken; for a way of running a step, true if it was taken.
        why: the reason, for people.
    """

    value: T
    why: str
