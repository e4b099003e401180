"""A training stage as data: which networks learn, from what, on which modalities, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from fastseg.pipelines.tools.settings import (
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Range,
    check_fields,
)

NOBODY = "nobody"
RANDOM, ENCODER = "random", "encoder"
_MOST_EPOCHS = 10**6


@dataclass(frozen=True)
class LossWeights:
    """Weight of every loss term; a term of weight 0 is not computed.

    A method adds the terms of its own by inheritance.
    """

    # terms that compare with the labels alone
    supervised: ClassVar[frozenset[str]] = frozenset({"ohem", "dice"})

    ohem: NotNegative = 1.0
    """Cross-entropy on hard pixels (OHEM) against the labels."""
    dice: NotNegative = 0.0
    """Soft Dice loss against the labels, mean over the classes that a batch has."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.active():
            raise ValueError("all loss weights are 0: give at least one term a positive weight")

    def active(self) -> dict[str, float]:
        """The terms that are computed, by name."""
        return {name: weight for name, weight in vars(self).items() if weight != 0}

    def distilled(self) -> list[str]:
        """The active terms that compare with another network, in alphabetical order."""
        return sorted(self.active().keys() - self.supervised)


@dataclass(frozen=True)
class Stage:
    """One phase of training.

    Networks are called by the names that their stages give them; what a method does with each of
    them is in the method's file. Several names are joined by ``+``.
    """

    trains: str = "teacher"
    """Network that learns; its weights are written as <trains>.safetensors. Several: a+b."""
    learns_from: str = NOBODY
    """Frozen network whose outputs are targets: complete input, eval mode, no gradient; or nobody.
    Several: a+b."""
    start: str = ENCODER
    """First weights: random, encoder (the file of model.weights), or the name of a network, of
    which they are a copy. Several: one for each network that learns, joined by +."""
    modalities: Literal["full", "drop", "zero"] = "full"
    """What the network sees: all modalities, a random subset, or all with the others zeroed."""
    modalities_per: Literal["batch", "sample"] = "batch"
    """The samples of a step share one random subset, or each has its own; then what is dropped is
    left out of the fusion, and not encoded unless a loss term reads it (--speed.packing)."""
    losses: LossWeights = field(default_factory=LossWeights)
    epochs: Annotated[float, Range(0, _MOST_EPOCHS, above=True)] = 200.0
    """Length of the stage in epochs; fractions are allowed."""
    steps: Natural = 0
    """Length in steps; overrides epochs when above 0."""
    lr: Fraction = 6e-5
    """Learning rate after warm-up."""
    warmup_epochs: Annotated[float, Range(0, _MOST_EPOCHS)] = 10.0
    """Linear warm-up from warmup_ratio * lr, in epochs."""
    warmup_ratio: Annotated[float, Range(0, 1)] = 0.1
    """First learning rate as a share of lr."""
    schedule: Literal["poly", "cosine", "one_cycle"] = "poly"
    """Decay after warm-up: polynomial (as published), half a cosine, or one cycle of a rise over 30
    percent of the stage and a fall, which has its own warm-up."""
    power: Positive = 0.9
    """Exponent of the polynomial decay after warm-up."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("trains", "learns_from", "start"):
            names = getattr(self, name).split("+")
            if "" in names or (name != "start" and len(set(names)) < len(names)):
                raise ValueError(f"{name} must be one name or several, joined by +, each once")
        if len(self._starts) not in (1, len(self.learners)):
            raise ValueError(
                f"start names {len(self._starts)} first weights for {len(self.learners)} networks: "
                "give one for all, or one for each, joined by +"
            )
        distilled = self.losses.distilled()
        if distilled and not self.targets and len(self.learners) == 1:
            raise ValueError(
                f"the loss terms {', '.join(distilled)} need another network: name one with "
                "learns_from"
            )
        for name in self.learners:
            if name in self.targets:
                raise ValueError(f"a stage that trains the {name} cannot learn from it")

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the networks that learn; the first is the one that is validated."""
        return tuple(self.trains.split("+"))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the frozen networks."""
        return () if self.learns_from == NOBODY else tuple(self.learns_from.split("+"))

    @property
    def _starts(self) -> tuple[str, ...]:
        return tuple(self.start.split("+"))

    def start_of(self, learner: str) -> str:
        """First weights of a network that learns: ``random``, ``encoder`` or a network's name."""
        starts = self._starts
        return starts[0] if len(starts) == 1 else starts[self.learners.index(learner)]

    def needed(self) -> tuple[str, ...]:
        """Names of the finished networks without which the stage cannot start."""
        copied = (start for start in self._starts if start not in (RANDOM, ENCODER))
        return tuple(dict.fromkeys([*self.targets, *copied]))

    @property
    def drops_per_sample(self) -> bool:
        """True if the fusion leaves out modalities of each sample on its own."""
        return self.modalities == "drop" and self.modalities_per == "sample"

    def num_steps(self, steps_per_epoch: int) -> int:
        """Length of the stage in optimizer steps."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))
