"""Names and order of the modality subsets that every table of this field reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from fastseg.engine.context import RunContext


@dataclass(frozen=True)
class Subset:
    """A non-empty choice of modalities: positions in the modality order and the letters' name."""

    name: str
    positions: tuple[int, ...]


def all_subsets(letters: Sequence[str]) -> list[Subset]:
    """The 2^M - 1 non-empty subsets in the papers' order: singles first, the full set last.

    For letters R, D, E, L: R D E L RD RE RL DE DL EL RDE RDL REL DEL RDEL.
    """
    positions = range(len(letters))
    return [
        Subset("".join(letters[i] for i in chosen), chosen)
        for size in range(1, len(letters) + 1)
        for chosen in combinations(positions, size)
    ]


def run_subsets(context: RunContext) -> list[Subset]:
    """All 2^M - 1 subsets of the modalities of a run, the full set last."""
    return all_subsets([modality.letter for modality in context.modalities])


def full_subset(letters: Sequence[str]) -> Subset:
    """The subset that holds every modality."""
    return Subset("".join(letters), tuple(range(len(letters))))
