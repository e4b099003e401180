"""Stochastic depth: residual branches that are left out at random while a network learns."""

from __future__ import annotations

import torch
from torch import Tensor


def stochastic_depth(images: Tensor, blocks: int, drop_path: float) -> list[Tensor | None]:
    """Factors of the residual branches of a network, see `MixTransformer.draw`.

    Args:
        images: ``[N, 3, H, W]``.
        blocks: number of blocks with two branches each.
        drop_path: probability of the last block; 0: nothing is dropped.
    """
    if drop_path == 0:
        return [None] * (2 * blocks)
    # computed where they are needed: a constant would be copied there, or be a buffer, of which
    # every step keeps what it was
    keep = torch.linspace(1, 1 - drop_path, blocks, dtype=torch.float32, device=images.device)
    keep = keep[1:].view(-1, 1, 1, 1, 1, 1)
    # each row begins at a multiple of 16 bytes, as a tensor of its own does
    shape = (blocks - 1, 2, -(-len(images) // 4) * 4, 1, 1, 1)
    drawn = images.new_empty(shape, dtype=torch.float32).bernoulli_(keep).div_(keep)
    return [None, None, *drawn[:, :, : len(images)].flatten(0, 1).unbind()]
