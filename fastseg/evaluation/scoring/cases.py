"""Cases: what networks are fed in an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from fastseg.evaluation.subsets import Subset
from fastseg.pipelines import CorruptionConfig

Missing = Literal["drop", "zero"]
NOTHING = "none"
"""Treatment of missing modalities where none is missing."""


@dataclass(frozen=True)
class Case:
    """One input of every sample of a split.

    Attributes:
        subset: the modalities that are whole.
        missing: what becomes of the others: left out, or set to zero after normalisation.
        removed: with ``zero``, the share of their elements that is; each is drawn for itself.
        faults: faults of the sensors, noise among them.
    """

    subset: Subset
    missing: Missing = "drop"
    removed: float = 1.0
    faults: CorruptionConfig = field(default_factory=CorruptionConfig)

    @property
    def treatment(self) -> str:
        """What is done to the modalities outside the subset: ``drop``, ``zero``, ``zero 0.25``."""
        return self.missing if self.removed == 1 else f"{self.missing} {self.removed:g}"

    def settled(self, modalities: int) -> Case:
        """The same input under one name: where nothing is missing, its treatment plays no part."""
        whole = len(self.subset.positions) == modalities
        return replace(self, missing="drop", removed=1.0) if whole else self

    def treatment_of(self, modalities: int) -> str:
        """`treatment`, or ``none`` where nothing is missing."""
        return NOTHING if len(self.subset.positions) == modalities else self.treatment
