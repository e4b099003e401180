"""All draws of one share of a step: the modalities that are left, and what the method draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.methods.base import Method, StepPlan
from fastseg.methods.draws import Draws, pack
from fastseg.methods.seeds import Seeds, Share
from fastseg.methods.stage import Stage
from fastseg.models.packing import PackingRule


def draw_step(
    method: Method,
    stage: Stage,
    seeds: Seeds,
    *,
    modalities: int,
    batch: int,
    share: Share,
    present: list[int],
    sample_ids: tuple[str, ...],
    device: torch.device,
    noise: int,
    rate: float,
    kept: Sequence[int] | Tensor | None = None,
    packing: PackingRule | None = None,
) -> Draws:
    """Subset, noise key, learning rate and the method's draws, packed for the device.

    Args:
        method: draws what it needs.
        stage: the stage that is trained.
        seeds: function that gives the seed of a purpose.
        modalities: M.
        batch: samples of the share.
        share: part of the whole step.
        present: positions of the modalities that are left of the batch, as drawn.
        sample_ids: names of the samples; empty in a rehearsal.
        device: device that the draws are copied to.
        noise: key of the noise.
        rate: learning rate.
        kept: what is left instead, in a rehearsal: positions of modalities, or marks ``[M, B]``.
        packing: how the images that are left are packed, where they alone are encoded.
    """
    # zeroed modalities, and those that are left out sample by sample, are encoded too
    everything = stage.modalities == "zero" or stage.modalities_per == "sample"
    marks: Tensor | None = None
    if stage.modalities != "full" and stage.modalities_per == "sample":
        if kept is None:
            whole = method.kept(stage, modalities, share.size(batch), seeds)
            marks = whole[share.rows(batch)].T.contiguous()
        else:
            marks = kept if isinstance(kept, Tensor) else _alike(kept, modalities, batch)
    elif kept is not None:
        present = list(kept)
    encoded = list(range(modalities)) if everything else present
    plan = StepPlan(stage, modalities, encoded, batch, share, seeds, marks, sample_ids)
    return pack(
        device,
        method.draw(plan),
        modalities=modalities,
        present=encoded,
        kept=present if marks is None else marks,
        seed=noise,
        rate=rate,
        packing=None if packing is None or marks is None else packing.pack(marks),
    )


def _alike(kept: Sequence[int], modalities: int, batch: int) -> Tensor:
    """``[M, B]`` int64, 1 for modalities that are left of all samples."""
    marks = torch.zeros((modalities, batch), dtype=torch.int64)
    marks[list(kept)] = 1
    return marks
