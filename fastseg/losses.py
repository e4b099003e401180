"""The loss terms of a stage: calls into the kernels, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fastseg import kernels
from fastseg.draws import Draws
from fastseg.models import SegFormerOutput
from fastseg.pipelines.tools.settings import Fraction, Range, check_fields
from fastseg.schedule import Stage


@dataclass(frozen=True)
class LossOptions:
    """Forms of the loss terms, where paper and released code differ or leave a choice."""

    ohem_threshold: Fraction = 0.7
    """Pixels whose true class has a probability below this are hard."""
    ohem_min_kept: Fraction = 1 / 16
    """At least this share of the labelled pixels is kept."""
    hpdm: Literal["paper", "code"] = "paper"
    """paper: class means, permuted modalities, absent classes masked; code: as released."""
    hpdm_axis: Literal["class", "channel"] = "class"
    """Axis that turns prototypes into distributions (paper form)."""
    rrm: Literal["paper", "code", "code-normalised"] = "paper"
    """paper: Fisher information of perturbed features; code: as released (height softmax), the sum
    of the levels divided by one number; code-normalised: each level divided by its own size."""
    rrm_samples: Annotated[int, Range(1, 1024)] = 10
    """Noise samples of the regulariser."""

    def __post_init__(self) -> None:
        check_fields(self)


def stage_losses(
    stage: Stage,
    options: LossOptions,
    output: SegFormerOutput,
    teacher: SegFormerOutput | None,
    labels: Tensor,
    draws: Draws,
) -> dict[str, Tensor]:
    """Every active term of the stage and their weighted sum ``loss``, as fp32 scalars.

    Args:
        stage: names the active terms and their weights.
        options: forms of the terms.
        output: of the network that learns; features ``[M', B, C, h, w]`` per level.
        teacher: of the frozen network on all M modalities; None in a stage without one.
        labels: ``[B, H, W]`` integer, 255 ignored.
        draws: which of the teacher's modalities the M' feature maps of ``output`` belong to, the
            modality permutations of HPDM and the seed of the perturbations of RRM.
    """
    weights = stage.losses.active()
    terms: dict[str, Tensor] = {}
    num_classes = output.logits.shape[1]
    target = teacher.logits if teacher is not None and "logit" in weights else None
    if "ohem" in weights or target is not None:
        ohem, logit = kernels.segmentation_loss(
            output.logits,
            labels,
            target,
            threshold=options.ohem_threshold,
            min_kept=options.ohem_min_kept,
        )
        terms |= {name: x for name, x in (("ohem", ohem), ("logit", logit)) if name in weights}
    if teacher is not None:
        # the present modalities, for both terms; a replayed step may not read which they are
        late = options.hpdm == "code" and draws.replayed
        chosen = "rrm" in weights or ("hpdm" in weights and late)
        matched = [draws.of(x) for x in teacher.features] if chosen else []
        if "hpdm" in weights:
            taught, present = teacher.features, draws.present
            if late:
                taught, present = matched, tuple(range(len(present)))
            terms["hpdm"] = kernels.hybrid_prototype_distillation(
                output.features,
                taught,
                labels,
                num_classes,
                draws.pairing,
                form=options.hpdm,
                present=present,
                axis=options.hpdm_axis,
            )
        if "rrm" in weights:
            terms["rrm"] = kernels.representation_regularisation(
                output.features,
                matched,
                seed=draws.noise_seed,
                samples=options.rrm_samples,
                form=options.rrm,
            )
    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return {**terms, "loss": total}
