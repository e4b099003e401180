"""SegFormer's all-MLP head behind the projections of its levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def sum_of_upsampled(levels: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Maps of several sizes brought to one size and added.

        out = sum_i up(levels[i])

    ``up`` is bilinear interpolation with half-pixel centres (``align_corners=False``): output row
    r lies at ``clamp((r + 1/2) h_i / H - 1/2, 0, h_i - 1)`` between the rows of level i, and so
    with the columns.

    Args:
        levels: ``[B, E, h_i, w_i]`` of one float dtype, at least one; best with the channels last
            in memory. The sums are made in their dtype, from the last level to the first.
        size: ``(H, W)``.

    Returns:
        ``[B, E, H, W]`` in the dtype of the levels.

    Raises:
        ValueError: there are no levels, or their shapes, dtypes or the size do not fit.
    """
    check_levels(levels, size)
    # in place, as nothing needs a sum so far for its gradient
    total = _upsampled(levels[-1], size)
    for level in reversed(levels[:-1]):
        total += _upsampled(level, size)
    return total


def check_levels(levels: Sequence[Tensor], size: Sequence[int]) -> None:
    """Raise ValueError unless the maps can be brought to the size and added."""
    if not levels:
        raise ValueError("expected at least one level")
    first = levels[0]
    for x in levels:
        if x.ndim != 4 or x.shape[:2] != first.shape[:2] or 0 in x.shape[1:]:
            shapes = [list(x.shape) for x in levels]
            raise ValueError(f"expected levels [B, E, h, w] of one B and E, got {shapes}")
        if x.dtype != first.dtype or x.device != first.device or not x.is_floating_point():
            kinds = ", ".join(f"{x.dtype} on {x.device}" for x in levels)
            raise ValueError(f"expected levels of one float dtype and device, got {kinds}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"expected a size of two positive numbers, got {tuple(size)}")


def _upsampled(level: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(level, tuple(size), mode="bilinear", align_corners=False)
