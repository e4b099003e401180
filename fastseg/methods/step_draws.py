"""All draws of one share of a step: the modalities that are left, and what the method draws."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.methods.base import Method, StepPlan
from fastseg.methods.draws import Draws, pack
from fastseg.methods.seeds import Seeds, Share
from fastseg.methods.stage import Stage


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
) -> Draws:
    """Subset, noise key, learning rate and the method's draws, packed for the device.

    Args:
        method: draws what it needs.
        stage: the stage that is trained.
        seeds: function that gives the seed of a purpose.
        modalities: M.
        batch: samples of the share.
        share: part of the whole step.
        present: positions of the modalities that are left of the batch.
        sample_ids: names of the samples; empty in a rehearsal.
        device: device that the draws are copied to.
        noise: key of the noise.
        rate: learning rate.
    """
    # zeroed modalities, and those that are left out sample by sample, are encoded too
    everything = stage.modalities == "zero" or stage.modalities_per == "sample"
    encoded = list(range(modalities)) if everything else present
    kept: Tensor | None = None
    if stage.modalities != "full" and stage.modalities_per == "sample":
        whole = method.kept(stage, modalities, share.size(batch), seeds)
        kept = whole[share.rows(batch)].T.contiguous()
    plan = StepPlan(stage, modalities, encoded, batch, share, seeds, kept, sample_ids)
    return pack(
        device,
        method.draw(plan),
        modalities=modalities,
        present=encoded,
        kept=present if kept is None else kept,
        seed=noise,
        rate=rate,
    )
