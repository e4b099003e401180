"""Baselines: training on the labels, and from a teacher's logits, with or without dropout.

    loss = ohem + dice + logit
    logit = KL(teacher || network), mean over batch, classes and pixels

Three recipes share these terms and differ in their stages:

- plain: one network on complete inputs, from the labels alone;
- dropout: the same with ``modalities drop`` ("anymodal dropout", arXiv:2411.17141), a subset per
  batch or per sample (`Stage.modalities_per`);
- logit distillation: a teacher on complete inputs, then a student with dropout that learns from the
  labels and from the teacher's logits, weight 50 in arXiv:2505.12861v1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastseg import kernels
from fastseg.errors import ConfigError
from fastseg.methods.base import Method, MethodOptions, StepInputs, register
from fastseg.methods.losses.labels import class_weights_on, dice_loss
from fastseg.methods.stage import LossWeights, Stage
from fastseg.pipelines.tools.settings import Fraction, NotNegative, Positive, check_fields


@dataclass(frozen=True)
class BaselineWeights(LossWeights):
    """Weight of every loss term; a term of weight 0 is not computed."""

    logit: NotNegative = 0.0
    """Logit distillation: KL(teacher || student), mean over batch, classes and pixels."""


@dataclass(frozen=True)
class OhemOptions(MethodOptions):
    """The pixels that count as hard, and what classes count."""

    ohem_threshold: Fraction = 0.7
    """Pixels whose true class has a probability below this are hard."""
    ohem_min_kept: Fraction = 1 / 16
    """At least this share of the labelled pixels is kept."""
    class_weights: tuple[Positive, ...] = ()
    """Weight of each class in the cross-entropy, in the order of the data set, such as those that
    fastseg.data stats prints; none: all count alike (as published)."""

    def __post_init__(self) -> None:
        check_fields(self)

    def check_classes(self, classes: Sequence[str]) -> None:
        """A weight for each class, or none."""
        if len(self.class_weights) not in (0, len(classes)):
            raise ConfigError(
                f"--losses.class-weights has {len(self.class_weights)} numbers, and the data set "
                f"has {len(classes)} classes: give one for each of {', '.join(classes)}"
            )


def ohem_and_logit(
    options: OhemOptions, logits: Tensor, labels: Tensor, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the hard pixels, and the divergence from ``target``; see the kernel."""
    return kernels.segmentation_loss(
        logits,
        labels,
        target,
        threshold=options.ohem_threshold,
        min_kept=options.ohem_min_kept,
        class_weights=class_weights_on(options.class_weights, logits.device),
    )


def label_terms(
    active: Mapping[str, float],
    options: OhemOptions,
    logits: Tensor,
    target: Tensor | None,
    labels: Tensor,
) -> dict[str, Tensor]:
    """The terms ``ohem``, ``dice`` and ``logit`` as fp32 scalars, as far as they are active.

    Args:
        active: the active terms; their weights are not read.
        options: the pixels that are hard.
        logits: ``[B, K, h, w]`` of the network that learns.
        target: those of the teacher, constant; None in a stage without one.
        labels: ``[B, H, W]`` integer, 255 ignored.
    """
    target = target if "logit" in active else None
    terms: dict[str, Tensor] = {}
    if "ohem" in active or target is not None:
        terms["ohem"], terms["logit"] = ohem_and_logit(options, logits, labels, target)
    if "dice" in active:
        terms["dice"] = dice_loss(logits, labels)
    order = ("ohem", "dice", "logit")
    return {name: terms[name] for name in order if name in active and name in terms}


def must_train_one(method: str, name: str, stage: Stage) -> None:
    """Refuse a stage with several networks that learn, or several that are learnt from.

    Raises:
        ValueError: it has; the message names the stage.
    """
    if len(stage.learners) > 1 or len(stage.targets) > 1:
        raise ValueError(
            f"stage {name!r}: {method} trains one network at a time and learns from one; name "
            "one with trains and one with learns_from"
        )


@register
class Baseline(Method):
    """A network on the labels; with a teacher also on its logits."""

    name: ClassVar[str] = "baseline"
    networks: ClassVar[tuple[str, ...]] = ("teacher", "student")
    compared: ClassVar[tuple[str, str] | None] = ("teacher", "student")
    weights: ClassVar[type[LossWeights]] = BaselineWeights
    options_type: ClassVar[type[MethodOptions]] = OhemOptions

    options: OhemOptions

    def check(self, name: str, stage: Stage) -> None:
        """One network learns, from one at most."""
        must_train_one(self.name, name, stage)

    def reads_dropped(self, stage: Stage) -> bool:
        """No: logits alone are compared."""
        return False

    def terms(self, step: StepInputs) -> dict[str, Tensor]:
        """OHEM, Dice and logit distillation, as far as they are active."""
        active, target = step.stage.losses.active(), None
        if "logit" in active:
            (teacher,) = step.stage.targets
            target = step.networks[teacher](step.images).logits
        (learner,) = step.stage.learners
        logits = step.output_of(learner).logits
        return label_terms(active, self.options, logits, target, step.labels)
