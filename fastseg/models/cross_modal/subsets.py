"""Images of any subset of the modalities as images of all of them, zeros for what is not there.

Images have the axes ``[M, B, 3, H, W]``, and marks ``[M, B]`` say which are there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def each_fusion(images: Tensor, fused: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The images and marks of P fusions, one after the other.

    Args:
        images: ``[M, B, 3, H, W]``; what is not there may hold anything.
        fused: ``[P, M, B]``, not 0 for what is there; None: everything, once.

    Returns:
        Images ``[M, P B, 3, H, W]``, and bool ``[M, P B]``; None for everything.
    """
    if fused is None:
        return images, None
    there = fused.bool().transpose(0, 1)
    each = torch.where(there.view(*there.shape, 1, 1, 1), images.unsqueeze(1), 0.0)
    return each.flatten(1, 2), there.flatten(1)


def complete(
    images: Tensor, there: Tensor | None, present: Sequence[int] | None, count: int
) -> tuple[Tensor, Tensor | None]:
    """All modalities from those that are present.

    Args:
        images: ``[M', B, 3, H, W]``.
        there: ``[M', B]`` bool; None: all.
        present: positions of the M' modalities among all; None: they are all.
        count: M.

    Returns:
        Images ``[M, B, 3, H, W]``, in memory in the order of ``images``, and marks; None for all.

    Raises:
        ValueError: there are more or fewer images than modalities.
    """
    rows = list(range(count)) if present is None else list(present)
    if len(rows) != len(images):
        raise ValueError(f"got images of {len(images)} modalities, expected {len(rows)}")
    if len(rows) == count:
        return images, there
    if there is None:
        there = images.new_ones(images.shape[:2], dtype=torch.bool)
    place = {m: i for i, m in enumerate(rows)}
    pixels = images.movedim(2, -1)
    last = pixels.is_contiguous()
    pixels = pixels if last else images
    blank, gone = torch.zeros_like(pixels[0]), torch.zeros_like(there[0])
    whole = torch.stack([pixels[place[m]] if m in place else blank for m in range(count)])
    marks = torch.stack([there[place[m]] if m in place else gone for m in range(count)])
    return whole.movedim(-1, 2) if last else whole, marks


def without(x: Tensor, row: int) -> Tensor:
    """``x [M, ...]`` without one row; a view where the others lie beside each other."""
    if row in (0, len(x) - 1):
        return x[1:] if row == 0 else x[:-1]
    return torch.cat([x[:row], x[row + 1 :]])
