"""Messages for names that do not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from .settings import shown


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The nearest known name as a question with a space behind it; empty if none is near.

    Args:
        name: as it was written.
        known: names that exist.
        cutoff: likeness that is asked for, from 0 (any) to 1 (equal); see ``difflib``.
    """
    nearest = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {nearest[0]!r}? " if nearest else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that does not exist, with the nearest one that does."""
    known = list(known)
    hint = did_you_mean(name, known, cutoff=0.4)
    return f"unknown {kind} {shown(name)}: {hint}known are {', '.join(known)}"
