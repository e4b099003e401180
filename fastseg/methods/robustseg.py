"""RobustSeg (arXiv:2505.12861v1): a teacher on complete inputs, a student on what is left of them.

The student learns from the labels, from the teacher's logits and prototypes (hybrid prototype
distillation, HPDM), and keeps the information of its features (representation regularisation, RRM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from fastseg import kernels
from fastseg.methods.base import (
    Method,
    MethodOptions,
    StepInputs,
    StepPlan,
    register,
)
from fastseg.methods.baseline import (
    BaselineWeights,
    OhemOptions,
    label_terms,
    must_train_one,
)
from fastseg.methods.draws import Draws
from fastseg.methods.losses.needs import must_have_equal_widths
from fastseg.methods.pairing import pairing_of_step
from fastseg.methods.stage import LossWeights, Stage
from fastseg.models.interface import Segmenter, SegmenterOutput
from fastseg.pipelines.tools.settings import NotNegative, Range


@dataclass(frozen=True)
class RobustSegWeights(BaselineWeights):
    """Weight of every loss term; a term of weight 0 is not computed."""

    hpdm: NotNegative = 0.0
    """Hybrid prototype distillation (HPDM) over the four levels."""
    rrm: NotNegative = 0.0
    """Representation regularisation (RRM) by functional entropy."""


@dataclass(frozen=True)
class DistillationOptions(OhemOptions):
    """Forms of OHEM and HPDM, where paper and released code differ or leave a choice."""

    hpdm: Literal["paper", "code"] = "paper"
    """paper: class means, permuted modalities, absent classes masked; code: as released."""
    hpdm_axis: Literal["class", "channel"] = "class"
    """Axis that turns prototypes into distributions (paper form)."""


@dataclass(frozen=True)
class LossOptions(DistillationOptions):
    """Forms of the loss terms, where paper and released code differ or leave a choice."""

    rrm: Literal["paper", "code", "code-normalised"] = "paper"
    """paper: Fisher information of perturbed features; code: as released (height softmax), the sum
    of the levels divided by one number; code-normalised: each level divided by its own size."""
    rrm_samples: Annotated[int, Range(1, 1024)] = 10
    """Noise samples of the regulariser."""


def loss_terms(
    active: Mapping[str, float],
    options: DistillationOptions,
    output: SegmenterOutput,
    teacher: SegmenterOutput | None,
    labels: Tensor,
    draws: Draws,
) -> dict[str, Tensor]:
    """Every active term as an fp32 scalar.

    Args:
        active: the active terms; their weights are not read.
        options: forms of the terms; `LossOptions` where RRM is active.
        output: of the network that learns; features ``[M', B, C, h, w]`` per level.
        teacher: of the frozen network on all M modalities; None in a stage without one.
        labels: ``[B, H, W]`` integer, 255 ignored.
        draws: which of the teacher's modalities the M' feature maps of ``output`` belong to, the
            modality permutations of HPDM and the seed of the perturbations of RRM.
    """
    target = None if teacher is None else teacher.logits
    terms = label_terms(active, options, output.logits, target, labels)
    num_classes = output.logits.shape[1]
    if teacher is not None:
        # the present modalities, for both terms; a replayed step may not read which they are
        late = options.hpdm == "code" and draws.replayed
        chosen = "rrm" in active or ("hpdm" in active and late)
        matched = [draws.of(x) for x in teacher.features] if chosen else []
        both = {"hpdm", "rrm"} <= active.keys()
        own, again = kernels.fan_out(output.features, 2) if both else [output.features] * 2
        if "hpdm" in active:
            taught, present = teacher.features, draws.present
            if late:
                taught, present = matched, tuple(range(len(present)))
            terms["hpdm"] = kernels.hybrid_prototype_distillation(
                own,
                taught,
                labels,
                num_classes,
                draws["pairing"],
                form=options.hpdm,
                present=present,
                axis=options.hpdm_axis,
            )
        if "rrm" in active:
            assert isinstance(options, LossOptions)
            terms["rrm"] = kernels.representation_regularisation(
                again,
                matched,
                seed=draws.noise_seed,
                samples=options.rrm_samples,
                form=options.rrm,
            )
    return terms


def must_share_subsets(name: str, stage: Stage, options: DistillationOptions) -> None:
    """Refuse the released form of HPDM where each sample has its own modalities.

    Raises:
        ValueError: with the stage's ``name`` and what to change.
    """
    released = options.hpdm == "code" and "hpdm" in stage.losses.active()
    if released and stage.drops_per_sample:
        raise ValueError(
            f"stage {name!r}: the released form of hpdm compares the modalities that all samples "
            "have: choose --losses.hpdm paper, modalities_per batch, or modalities zero"
        )


@register
class RobustSeg(Method):
    """Teacher and student of RobustSeg; without HPDM and RRM it is training by modality dropout.

    Where each sample has its own modalities, HPDM pairs those that are left of it, and RRM
    regularises all of them: with RRM every one is encoded.
    """

    name: ClassVar[str] = "robustseg"
    networks: ClassVar[tuple[str, ...]] = ("teacher", "student")
    compared: ClassVar[tuple[str, str] | None] = ("teacher", "student")
    weights: ClassVar[type[LossWeights]] = RobustSegWeights
    options_type: ClassVar[type[MethodOptions]] = LossOptions
    feature_terms: ClassVar[frozenset[str]] = frozenset({"hpdm", "rrm"})

    options: LossOptions

    def check(self, name: str, stage: Stage) -> None:
        """One network learns, from one at most."""
        must_train_one(self.name, name, stage)
        must_share_subsets(name, stage, self.options)

    def check_models(self, stage: Stage, models: Mapping[str, Segmenter]) -> None:
        """Features are compared channel by channel."""
        super().check_models(stage, models)
        if stage.losses.active().keys() & {"hpdm", "rrm"}:
            must_have_equal_widths(stage, models)

    def reads_dropped(self, stage: Stage) -> bool:
        """RRM regularises all modalities; HPDM pairs those that are left."""
        return "rrm" in stage.losses.active()

    def draw(self, plan: StepPlan) -> dict[str, Tensor]:
        """``pairing [B, M]``: the student row that each of the teacher's modalities teaches."""
        return {"pairing": pairing_of_step(plan)}

    def terms(self, step: StepInputs) -> dict[str, Tensor]:
        """OHEM, logit distillation, HPDM and RRM, as far as they are active."""
        target = None
        for name in step.stage.targets:
            target = step.networks[name](step.images)
        (learner,) = step.stage.learners
        output = step.output_of(learner)
        active = step.stage.losses.active()
        return loss_terms(active, self.options, output, target, step.labels, step.draws)

    def state(self) -> dict[str, Any]:
        """The form of RRM."""
        return {"rrm": self.options.rrm}

    def changed_meaning(self, stage: Stage, state: Mapping[str, Any]) -> str | None:
        """States of early versions were saved under another meaning of ``rrm code``."""
        if "rrm" in state or self.options.rrm != "code" or "rrm" not in stage.losses.active():
            return None
        return (
            f"step {state['step']} was saved when --losses.rrm code divided each level by its own "
            "size, which is code-normalised now; from here on the levels have the released "
            "proportions. To train all steps alike start anew with --fresh, and for the old form "
            "with --losses.rrm code-normalised"
        )
