"""AnySeg (arXiv:2411.17141): a student on what is left of the modalities learns a teacher's views.

    loss = ohem + 50 logit + 5 umd + 10 cmd

A teacher learns on complete inputs; then a student of the same kind, with dropped modalities,
learns from the labels and from the teacher's predictions (MAD, here ``logit``), the features of
each modality (UMD) and the correlations between modalities (CMD), see
`fastseg.methods.losses.features`.

Weights: 50 and 5 are the best of the paper's ablations; 50, 5 and 10 are in the folder names of the
authors' configs (MaD50, UMD5, CMD10). Their schedule: 200 epochs at 1024 px, AdamW, learning rate
6e-5 (DELIVER) or 1.2e-4 (MUSES, MiT-B0), 4 samples per GPU. ``logit`` is KL(teacher || student) as
in the released code; the paper prints KL(student || teacher).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fastseg.methods.base import (
    Method,
    MethodOptions,
    StepInputs,
    register,
)
from fastseg.methods.baseline import BaselineWeights, OhemOptions, label_terms, must_train_one
from fastseg.methods.losses.features import cross_modal_distillation, unimodal_distillation
from fastseg.methods.losses.needs import must_have_equal_widths
from fastseg.methods.stage import LossWeights, Stage
from fastseg.models.interface import Segmenter
from fastseg.pipelines.tools.settings import NotNegative


@dataclass(frozen=True)
class AnySegWeights(BaselineWeights):
    """Weight of every loss term; a term of weight 0 is not computed."""

    umd: NotNegative = 0.0
    """Unimodal distillation: divergence from the teacher's features of each modality (UMD)."""
    cmd: NotNegative = 0.0
    """Cross-modal distillation: difference of the correlations between modalities (CMD)."""


@dataclass(frozen=True)
class AnySegOptions(OhemOptions):
    """Forms of the loss terms, where paper and released code differ or leave a choice."""

    umd_axis: Literal["channel", "height", "map"] = "channel"
    """Axis along which UMD makes distributions of features; height: as released."""
    cmd: Literal["features", "code"] = "features"
    """What CMD correlates: features as they are, or as released their softmax along the height."""


@register
class AnySeg(Method):
    """Teacher and student of AnySeg."""

    name: ClassVar[str] = "anyseg"
    networks: ClassVar[tuple[str, ...]] = ("teacher", "student")
    compared: ClassVar[tuple[str, str] | None] = ("teacher", "student")
    weights: ClassVar[type[LossWeights]] = AnySegWeights
    options_type: ClassVar[type[MethodOptions]] = AnySegOptions
    feature_terms: ClassVar[frozenset[str]] = frozenset({"umd", "cmd"})

    options: AnySegOptions

    def check(self, name: str, stage: Stage) -> None:
        """One network learns, from one at most."""
        must_train_one(self.name, name, stage)

    def check_models(self, stage: Stage, models: Mapping[str, Segmenter]) -> None:
        """Features are compared channel by channel."""
        super().check_models(stage, models)
        if stage.losses.active().keys() & {"umd", "cmd"}:
            must_have_equal_widths(stage, models)

    def reads_dropped(self, stage: Stage) -> bool:
        """No: UMD and CMD compare what is left of a sample."""
        return False

    def terms(self, step: StepInputs) -> dict[str, Tensor]:
        """OHEM, logit distillation, UMD and CMD, as far as they are active.

        Modalities that are zeroed or left out of a sample's fusion take no part in UMD and CMD.
        """
        active, target = step.stage.losses.active(), None
        if step.stage.targets:
            (teacher,) = step.stage.targets
            target = step.networks[teacher](step.images)
        (learner,) = step.stage.learners
        output = step.output_of(learner)
        logits = None if target is None else target.logits
        terms = label_terms(active, self.options, output.logits, logits, step.labels)
        if target is not None and active.keys() & {"umd", "cmd"}:
            taught = [step.draws.of(x) for x in target.features]
            marks = step.marks_of(output.features[0])
            if "umd" in active:
                terms["umd"] = unimodal_distillation(
                    output.features, taught, self.options.umd_axis, marks
                )
            if "cmd" in active:
                terms["cmd"] = cross_modal_distillation(
                    output.features, taught, self.options.cmd, marks
                )
        return terms
