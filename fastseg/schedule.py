"""Training stages as data: who learns what from whom, on which modalities, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import numpy as np

from fastseg.pipelines.tools.settings import (
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Range,
    check_fields,
)

_MOST_EPOCHS = 10**6


@dataclass(frozen=True)
class LossWeights:
    """Weight of every loss term; a term of weight 0 is not computed."""

    ohem: NotNegative = 1.0
    """Cross-entropy on hard pixels (OHEM) against the labels."""
    logit: NotNegative = 0.0
    """Logit distillation: KL(teacher || student), mean over batch, classes and pixels."""
    hpdm: NotNegative = 0.0
    """Hybrid prototype distillation (HPDM) over the four levels."""
    rrm: NotNegative = 0.0
    """Representation regularisation (RRM) by functional entropy."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.active():
            raise ValueError("all loss weights are 0: give at least one term a positive weight")

    def active(self) -> dict[str, float]:
        """The terms that are computed, by name."""
        return {name: weight for name, weight in vars(self).items() if weight != 0}

    def needs_teacher(self) -> bool:
        """Whether any active term compares with a teacher."""
        return bool(set(self.active()) - {"ohem"})


@dataclass(frozen=True)
class Stage:
    """One phase of training."""

    trains: Literal["teacher", "student"] = "teacher"
    """Network that learns; its weights are written as <trains>.safetensors."""
    learns_from: Literal["nobody", "teacher"] = "nobody"
    """Frozen network whose outputs are targets: complete input, eval mode, no gradient."""
    start: Literal["random", "encoder", "teacher"] = "encoder"
    """First weights: random, the encoder file of model.weights, or a copy of the teacher."""
    modalities: Literal["full", "drop", "zero"] = "full"
    """What the network sees: all modalities, a random subset, or all with the others zeroed."""
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
    power: Positive = 0.9
    """Exponent of the polynomial decay after warm-up."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.losses.needs_teacher() and self.learns_from == "nobody":
            terms = ", ".join(sorted(set(self.losses.active()) - {"ohem"}))
            raise ValueError(f"the loss terms {terms} need learns_from=teacher")
        if self.trains == "teacher" and (self.learns_from == "teacher" or self.start == "teacher"):
            raise ValueError("a stage that trains the teacher cannot learn or start from it")

    def num_steps(self, steps_per_epoch: int) -> int:
        """Length of the stage in optimizer steps."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))

    def needs_teacher(self) -> bool:
        """Whether the stage can only start once there is a teacher."""
        return self.learns_from == "teacher" or self.start == "teacher"


def learning_rate(stage: Stage, step: int, steps_per_epoch: int) -> float:
    """Warm-up and polynomial decay as published.

    With warm-up length T_w = warmup_epochs and T_max = epochs + 1, both in steps::

        lr(t) = lr0 (r + (1 - r) t / T_w)                       t < T_w
        lr(t) = lr0 (1 - (t - T_w) / (T_max - T_w)) ^ power     otherwise

    T_max lies one epoch behind the end, so the last step still learns. A warm-up longer than half
    of the stage is cut to half of it, so that short runs reach their learning rate.

    Source: released code of arXiv:2505.12861v1, ``semseg/schedulers.py`` (warm-up poly).
    """
    total = stage.num_steps(steps_per_epoch)
    warmup = min(round(stage.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return stage.lr * (stage.warmup_ratio + (1 - stage.warmup_ratio) * step / warmup)
    progress = (step - warmup) / (total + min(steps_per_epoch, total) - warmup)
    return float(stage.lr * max(0.0, 1 - progress) ** stage.power)


@dataclass(frozen=True)
class Share:
    """The samples of one forward pass among those of the whole step.

    A step has ``accumulate`` micro-batches of ``world`` processes. Its samples are numbered as the
    loaders deal them: micro-batch after micro-batch, and within one round robin over the ranks.
    """

    rank: int = 0
    world: int = 1
    micro: int = 0
    accumulate: int = 1

    @property
    def part(self) -> int:
        """Number of this share among all of the step; 0 for the whole."""
        return self.micro * self.world + self.rank

    def size(self, batch: int) -> int:
        """Samples of the step, with ``batch`` in this share."""
        return batch * self.world * self.accumulate

    def rows(self, batch: int) -> slice:
        """Which samples of the step these are."""
        first = self.micro * self.world * batch
        return slice(first + self.rank, first + self.world * batch, self.world)


Purpose = Literal["weights", "modalities", "dropout", "pairing", "noise"]


def derive_seed(seed: int, stage: int, step: int, purpose: Purpose, part: int = 0) -> int:
    """A 63-bit seed for one purpose of one step, so that no random state is saved or replayed.

    ``part`` is the part of the global batch that the draw is for, see `Share`.
    """
    parts = (seed, stage, step, get_args(Purpose).index(purpose), *((part,) if part else ()))
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw_modalities(
    policy: str, num_modalities: int, seed: int, stage: int, step: int
) -> list[int]:
    """Positions of the modalities that the network sees in this step, ascending.

    ``full`` gives all. Otherwise k is uniform over 1..M and the subset uniform among those of
    size k ("anymodal dropout"), one draw for the whole global batch. It depends on the seed and
    the step alone, so all ranks agree and a resumed run draws the same.

    Source: arXiv:2411.17141 and the released code of arXiv:2505.12861v1.
    """
    if policy == "full":
        return list(range(num_modalities))
    random = np.random.default_rng(derive_seed(seed, stage, step, "modalities"))
    kept = int(random.integers(1, num_modalities + 1))
    return sorted(random.permutation(num_modalities)[:kept].tolist())
