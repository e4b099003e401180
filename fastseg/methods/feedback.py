"""RobustSeg, CVPR 2026: hybrid distillation of dominant modalities, and feedback to the teacher.

A teacher learns on complete inputs. Then two copies of it learn at the same time. The student, on
what is left of the modalities, learns

    L_hp = ohem + lambda logit + alpha hpdm + beta ifv,    lambda = 50, alpha = 100, beta = 12

from the labels and from the second copy, the ``feedback_teacher``: prototypes across modalities
(`hybrid_prototype_distillation`), and the intra-class feature variation (`ifv_distillation`) of the
*dominant* modalities alone, see `fastseg.methods.dominance`. The feedback teacher learns

    L_feedback = feedback_ohem + feedback_ifv

at 0.1 times the rate, through the features of the other modalities: their maps follow those of the
student, which sees complete inputs for that. What lies behind its encoders stays as it is, and the
whole network is in evaluation mode, so that one pass is the target of the student and learns.

Of an encoder that all modalities share, gradients come from the images of these modalities alone.
With encoders of their own, modalities are ranked once for the samples that all processes train on
together (a micro-batch, where a step has several), and the dominant encoders do not move. Both
networks take their gradients at the same weights and move together; the paper says no order.

Published: 200 epochs of the teacher, 120 of both together, AdamW, lr 6e-5 with warm-up of 10 epochs
and decay of power 0.9, 1024 x 1024, MiT-B0. The released code has stage two without feedback
(``trains="student", learns_from="teacher"``), with all modalities in ``ifv``
(``ifv_modalities="all"``) and a student that starts from ImageNet. The paper leaves the axis of the
maps' softmax and the weight of ``feedback_ifv`` open: the axis is that of the code, the weight 1.

Source: RobustSeg, CVPR 2026, equations 1 and 4 to 9; github.com/RobustSeg/RMMSS at d5dd5d8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fastseg import kernels
from fastseg.errors import ConfigError
from fastseg.methods.base import (
    Method,
    StepInputs,
    StepPlan,
    Surroundings,
    register,
)
from fastseg.methods.baseline import ohem_and_logit
from fastseg.methods.dominance import Dominance
from fastseg.methods.losses.needs import must_have_equal_widths
from fastseg.methods.pairing import pairing_of_step
from fastseg.methods.robustseg import DistillationOptions, loss_terms, must_share_subsets
from fastseg.methods.stage import ENCODER, RANDOM, LossWeights, Stage
from fastseg.models.interface import Segmenter, SegmenterOutput
from fastseg.models.partial import rows_of
from fastseg.pipelines.tools.settings import Fraction, NotNegative, Positive

TEACHER = "feedback_teacher"
_FEEDBACK = frozenset({"feedback_ohem", "feedback_ifv"})


@dataclass(frozen=True)
class FeedbackWeights(LossWeights):
    """Weight of every loss term; a term of weight 0 is not computed."""

    supervised: ClassVar[frozenset[str]] = LossWeights.supervised | {"feedback_ohem"}

    logit: NotNegative = 0.0
    """Logit distillation: KL(teacher || student), mean over batch, classes and pixels."""
    hpdm: NotNegative = 0.0
    """Distillation of prototypes across modalities (CPD) over the four levels."""
    ifv: NotNegative = 0.0
    """Distillation of the feature variation of dominant modalities over the four levels."""
    feedback_ohem: NotNegative = 0.0
    """Cross-entropy on hard pixels of the feedback teacher."""
    feedback_ifv: NotNegative = 0.0
    """Distance of the feedback teacher from the student's variation, of the other modalities."""


@dataclass(frozen=True)
class FeedbackOptions(DistillationOptions):
    """Forms of the loss terms, where paper and released code differ or leave a choice."""

    ifv_axis: Literal["row", "map"] = "row"
    """Softmax of a map over each image row, as released, or over all its pixels."""
    ifv_ignored: Literal["mask", "one"] = "mask"
    """Ignored pixels of a map are left out, or stay with a similarity of one, as released."""
    ifv_temperature: Positive = 2.0
    """Temperature of that softmax."""
    ifv_modalities: Literal["dominant", "all"] = "dominant"
    """Modalities that the student's ifv compares: the dominant ones, or all, as released."""
    ifv_include_dropped: bool = False
    """Also compare dropped modalities where they are encoded nevertheless, as released."""
    feedback_rate: Fraction = 0.1
    """Learning rate of the feedback teacher, as a share of the stage's."""


@register
class Feedback(Method):
    """Teacher, student and the copy of the teacher that learns from the student."""

    name: ClassVar[str] = "feedback"
    networks: ClassVar[tuple[str, ...]] = ("teacher", TEACHER, "student")
    compared: ClassVar[tuple[str, str] | None] = ("teacher", "student")
    weights: ClassVar[type[LossWeights]] = FeedbackWeights
    options_type: ClassVar[type[FeedbackOptions]] = FeedbackOptions
    feature_terms: ClassVar[frozenset[str]] = frozenset({"hpdm", "ifv", "feedback_ifv"})
    seen: ClassVar[Mapping[str, str]] = {TEACHER: "all modalities"}

    options: FeedbackOptions

    def __init__(self, options: FeedbackOptions) -> None:
        super().__init__(options)
        # per modality: how the names of the teacher's parameters begin that serve it alone
        self._own: list[list[str]] = []

    def check(self, name: str, stage: Stage) -> None:
        """One network learns, from one at most; or the student and the feedback teacher do."""
        active = stage.losses.active()
        back = sorted(active.keys() & _FEEDBACK)
        if TEACHER in stage.learners:
            if stage.learners != ("student", TEACHER) or stage.targets:
                raise ValueError(
                    f"stage {name!r}: the feedback teacher and the student learn from each other: "
                    f"set trains to student+{TEACHER} and learns_from to nobody"
                )
            if stage.start_of(TEACHER) in (RANDOM, ENCODER):
                raise ValueError(
                    f"stage {name!r}: the head of the feedback teacher does not learn, so it "
                    "cannot start from random weights: set start to teacher"
                )
            if not back or len(back) == len(active):
                raise ValueError(
                    f"stage {name!r} has no loss term for the {'student' if back else TEACHER}: "
                    "give one a positive weight"
                )
        elif len(stage.learners) > 1 or len(stage.targets) > 1:
            raise ValueError(
                f"stage {name!r}: feedback trains student+{TEACHER}, or one network that learns "
                "from one at most"
            )
        elif back:
            raise ValueError(
                f"stage {name!r}: {' and '.join(back)} need the {TEACHER}, which it does not "
                f"train: set trains to student+{TEACHER}, or these weights to 0"
            )
        must_share_subsets(name, stage, self.options)

    def check_models(self, stage: Stage, models: Mapping[str, Segmenter]) -> None:
        """Prototypes are compared channel by channel; feedback needs parts of a pass."""
        super().check_models(stage, models)
        if "hpdm" in stage.losses.active():
            must_have_equal_widths(stage, models)
        if TEACHER not in stage.learners:
            return
        models[TEACHER].must_take("learning", "the method feedback")
        models["student"].must_take("head", "the method feedback")
        if not models[TEACHER].fusion_and_head():
            raise ConfigError(
                f"feedback trains the encoders of the teacher alone, and "
                f"{type(models[TEACHER]).__name__} does not say what lies behind them: take "
                "another --model.backbone, or implement fusion_and_head"
            )

    def hold(self, stage: Stage, learning: Mapping[str, Segmenter]) -> None:
        """Hold the feedback teacher in evaluation mode, and all behind its encoders still."""
        if TEACHER in learning:
            teacher = learning[TEACHER]
            teacher.hold(teacher.children(), learn=True)
            teacher.hold(teacher.fusion_and_head())

    def prepare(
        self, stage: Stage, learning: Mapping[str, Segmenter], surroundings: Surroundings
    ) -> None:
        """Find the parameters of the feedback teacher that serve one modality alone."""
        if TEACHER in learning:
            names = surroundings.modalities
            self._own = [_names_of(learning[TEACHER], modality) for modality in names]

    def rate_factor(self, stage: Stage, network: str) -> float:
        """``feedback_rate`` for the feedback teacher."""
        return self.options.feedback_rate if network == TEACHER else 1.0

    def reads_dropped(self, stage: Stage) -> bool:
        """The student's ifv may; the feedback teacher always sees complete inputs."""
        return "ifv" in stage.losses.active() and self.options.ifv_include_dropped

    def draw(self, plan: StepPlan) -> dict[str, Tensor]:
        """``pairing [B, M]``: the student row that each of the teacher's modalities teaches."""
        return {"pairing": pairing_of_step(plan)}

    def terms(self, step: StepInputs) -> dict[str, Tensor]:
        """The terms of the student and those of the feedback teacher, as far as they are active."""
        if TEACHER in step.stage.learners:
            return self._together(step)
        target, dominance = None, Dominance()
        for name in step.stage.targets:
            target = step.networks[name](step.images)
            if "ifv" in step.stage.losses.active():
                dominance.rank(target.features)
        return self._of_learner(step, target, dominance)

    def _together(self, step: StepInputs) -> dict[str, Tensor]:
        """Both networks learn; each is a constant to the other."""
        own = any(self._own)
        dominance = Dominance(per_batch=own, mean_over_processes=step.mean_over_processes)
        if len(step.images) == 1:
            # the only modality is dominant: nothing is left to learn through
            teacher = step.settled[TEACHER](step.images)
            dominance.rank(teacher.features)
        else:
            teacher = step.networks[TEACHER](step.images, learning=dominance.rank)
        for modality, beginnings in enumerate(self._own):
            for beginning in beginnings:
                step.still[f"{TEACHER}.{beginning}"] = dominance.dominant[modality, 0]
        target = SegmenterOutput(teacher.logits.detach(), [x.detach() for x in teacher.features])
        terms = self._of_learner(step, target, dominance)
        return terms | self._of_feedback(step, teacher, dominance)

    def _of_learner(
        self, step: StepInputs, target: SegmenterOutput | None, dominance: Dominance
    ) -> dict[str, Tensor]:
        """Terms of the first network that learns."""
        active = step.stage.losses.active()
        output = step.output_of(step.stage.learners[0])
        terms = loss_terms(active, self.options, output, target, step.labels, step.draws)
        if "ifv" in active and target is not None:
            matched = [step.draws.of(x) for x in target.features]
            selected = step.draws.of(self._compared(step, dominance.dominant))
            terms["ifv"] = self._ifv(output, output.features, matched, step.labels, selected)
        return terms

    def _compared(self, step: StepInputs, dominant: Tensor) -> Tensor:
        """Bool ``[M, B]``, the modalities of each sample that the student's ifv compares."""
        chosen = dominant if self.options.ifv_modalities == "dominant" else dominant | True
        encoded = step.stage.modalities == "zero" or step.stage.drops_per_sample
        if encoded and not self.options.ifv_include_dropped:
            chosen = chosen & step.draws.kept.bool()
        return chosen

    def _of_feedback(
        self, step: StepInputs, teacher: SegmenterOutput, dominance: Dominance
    ) -> dict[str, Tensor]:
        """Terms of the feedback teacher; zeros where every modality is dominant."""
        active = step.stage.losses.active()
        terms: dict[str, Tensor] = {}
        if len(step.images) == 1:
            zero = step.images.new_zeros((), dtype=torch.float32)
            return {name: zero for name in active if name in _FEEDBACK}
        if "feedback_ohem" in active:
            terms["feedback_ohem"], _ = ohem_and_logit(self.options, teacher.logits, step.labels)
        if "feedback_ifv" in active:
            images, features, selected = step.images, teacher.features, None
            if step.modules["student"].reads_present:
                # its encoder depends on the modality, which only the device knows
                selected = ~dominance.dominant
            else:
                images = rows_of(images, dominance.weak)
                features = [rows_of(x, dominance.weak) for x in features]
            student = step.settled["student"](images, head=False)
            terms["feedback_ifv"] = self._ifv(
                teacher, features, student.features, step.labels, selected
            )
        return terms

    def _ifv(
        self,
        output: SegmenterOutput,
        features: Sequence[Tensor],
        target: Sequence[Tensor],
        labels: Tensor,
        selected: Tensor | None,
    ) -> Tensor:
        """`ifv_distillation` in the form of the options; the classes are those of ``output``."""
        return kernels.ifv_distillation(
            features,
            target,
            labels,
            output.logits.shape[1],
            selected=selected,
            axis=self.options.ifv_axis,
            ignored=self.options.ifv_ignored,
            temperature=self.options.ifv_temperature,
        )


def _names_of(network: Segmenter, modality: str) -> list[str]:
    """Beginnings of the names of the parameters that serve a modality alone, and of no others."""
    own = {id(p) for p in network.modality_parameters(modality)}
    for name, module in network.named_modules():
        if own and {id(p) for p in module.parameters()} == own:
            return [f"{name}."]
    return [name for name, p in network.named_parameters() if id(p) in own]
