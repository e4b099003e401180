"""RMMSS (arXiv:2505.12861v2): a complete-input teacher, a robust student, and a selection of both.

1. The teacher learns on complete input.
2. The student learns with modality dropout by OHEM, logit distillation and HPDM, see
   `fastseg.methods.robustseg`.
3. Both are frozen. ``selected`` is one model that holds them and learns to select, element by
   element, between their fused features and between their logits, see
   `fastseg.models.selected_pair`.

Loss of stage 3, on inputs whose modalities are dropped; all of them are left with probability 1/M:

    ohem(selected logits) + 50 KL(teacher on complete input || selected), mean over all elements

Published: weights 1, 50 and 100 of OHEM, logit and HPDM (released script of stage 2); 200 epochs,
AdamW with 6e-5, warm-up of 10 epochs from a tenth. Not published: loss, rate and length of stage 3,
the selection of logits, and a gradient. The released selection is an arg max alone, through which
nothing learns, and no released file holds a trained one; here it learns straight through with
temperature 0.2, the value in a comment of the released code. For it 20 epochs with 6e-5 are a
start.
The selections have 22 C + 2 parameters each: 11 272 on the levels of MiT-B0, 22 536 on those of
MiT-B1 to B5, and 22 K + 2 on the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fastseg.errors import ConfigError
from fastseg.methods.base import MethodOptions, NewModel, StepInputs, StepPlan, register
from fastseg.methods.baseline import label_terms
from fastseg.methods.robustseg import LossOptions, RobustSeg
from fastseg.methods.stage import Stage
from fastseg.models.interface import Segmenter
from fastseg.models.selected_pair import SelectedPair
from fastseg.pipelines.tools.settings import Positive

TEACHER, STUDENT, SELECTED = "teacher", "student", "selected"


@dataclass(frozen=True)
class RmmssOptions(LossOptions):
    """Forms of the terms and of the selection."""

    selection_temperature: Positive = 0.2
    """Softmax temperature of the selection in the backward pass; the forward pass is an arg max."""


@register
class Rmmss(RobustSeg):
    """RobustSeg without RRM, and a model that selects between its two networks."""

    name: ClassVar[str] = "rmmss"
    networks: ClassVar[tuple[str, ...]] = (TEACHER, STUDENT, SELECTED)
    compared: ClassVar[tuple[str, str] | None] = (TEACHER, SELECTED)
    options_type: ClassVar[type[MethodOptions]] = RmmssOptions

    options: RmmssOptions

    def check(self, name: str, stage: Stage) -> None:
        """The selection learns alone, from both networks; the stages before it are RobustSeg's."""
        if "rrm" in stage.losses.active():
            raise ValueError(
                f"stage {name!r}: rmmss has no rrm: set its weight to 0, or take --method robustseg"
            )
        if SELECTED in stage.targets:
            raise ValueError(f"stage {name!r}: no network of rmmss learns from the {SELECTED}")
        if SELECTED not in stage.learners:
            super().check(name, stage)
            return
        if (
            len(stage.learners) > 1
            or set(stage.targets) != {TEACHER, STUDENT}
            or stage.start not in stage.targets
        ):
            raise ValueError(
                f"stage {name!r}: the {SELECTED} is made of both other networks: set trains "
                f"{SELECTED}, learns_from {TEACHER}+{STUDENT} and start {STUDENT}, got trains "
                f"{stage.trains}, learns_from {stage.learns_from} and start {stage.start}"
            )
        if "hpdm" in stage.losses.active():
            raise ValueError(
                f"stage {name!r}: the features of the {SELECTED} do not change, so hpdm teaches "
                "it nothing: set its weight to 0"
            )

    def build(self, network: str, new: NewModel) -> Segmenter:
        """``selected`` holds two models of the run; the others are one."""
        if network != SELECTED:
            return super().build(network, new)
        full, robust = new(), new()
        temperature = self.options.selection_temperature
        return SelectedPair(full, robust, temperature, name=TEACHER)

    def check_models(self, stage: Stage, models: Mapping[str, Segmenter]) -> None:
        """The teacher and the student fit into the selection."""
        super().check_models(stage, models)
        selected = models.get(SELECTED)
        if not isinstance(selected, SelectedPair):
            return
        for name, candidate in ((TEACHER, selected.full), (STUDENT, selected.robust)):
            if _shapes(models[name]) != _shapes(candidate):
                raise ConfigError(
                    f"the {SELECTED} holds two models of --model.backbone, and the {name} is "
                    "another one: leave out --model.teacher-backbone"
                )

    def first_weights(
        self, stage: Stage, name: str, network: Segmenter, finished: Mapping[str, Segmenter]
    ) -> None:
        """The candidates of the selection become the finished networks; its scores are random."""
        if not isinstance(network, SelectedPair):
            super().first_weights(stage, name, network, finished)
            return
        network.full.load_state_dict(finished[TEACHER].state_dict())
        network.robust.load_state_dict(finished[STUDENT].state_dict())

    def draw(self, plan: StepPlan) -> dict[str, Tensor]:
        """As RobustSeg; the selection has no draws of its own."""
        return {} if SELECTED in plan.stage.learners else super().draw(plan)

    def terms(self, step: StepInputs) -> dict[str, Tensor]:
        """OHEM, logit distillation and HPDM, as far as they are active."""
        if SELECTED not in step.stage.learners:
            return super().terms(step)
        active, target = step.stage.losses.active(), None
        if "logit" in active:
            target = step.networks[TEACHER](step.images).logits
        logits = step.output_of(SELECTED).logits
        return label_terms(active, self.options, logits, target, step.labels)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in network.state_dict().items()}
