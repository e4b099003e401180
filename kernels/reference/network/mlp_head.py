"""SegFormer's all-MLP head behind the projections of its levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def mlp_head(
    levels: Sequence[Tensor],
    first: Tensor,
    projection: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: nn.BatchNorm2d | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """Logits of the all-MLP head from its projected levels.

        x = sum_i up(levels[i]) + projection first
        logits = weight (factor relu(norm(x))) + bias

    Args:
        levels: ``[B, E, h_i, w_i]`` of one float dtype, levels 2 to 4 times their projections;
            best with the channels last in memory.
        first: ``[B, C, h, w]``, level 1, whose size the logits have.
        projection: ``[E, C]``, of level 1.
        weight: ``[K, E]`` of the classifier.
        bias: ``[K]``.
        norm: BatchNorm of x, whose running statistics a training call updates; None where it is
            part of the projections.
        factor: ``[B, E]``, factor on the channels behind the ReLU; constant.

    Returns:
        ``[B, K, h, w]``, the channels last in memory. Everything is computed in the dtype of the
        levels, products as autocast has them.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_head(levels, first, projection, weight, bias, factor)
    n, _, h, w = first.shape
    # in place, but not through a view, as autograd would then copy everything
    deeper = sum_of_upsampled(levels, (h, w))
    x = _maps(torch.addmm(_pixels(deeper), _pixels(first), projection.t()), n, h)
    if norm is not None:
        x = norm(x)
    x = _pixels(F.relu(x, inplace=True))
    # as a product the gradient keeps the channels last, which a 1x1 convolution would not
    if factor is None:
        return _maps(F.linear(x, weight, bias), n, h)
    # dropping channels drops columns of the weight: the map is neither copied nor kept twice
    weight = weight * factor.to(weight.dtype)[:, None]
    logits = torch.baddbmm(bias, x.view(n, h * w, -1), weight.transpose(1, 2))
    return _maps(logits.flatten(0, 1), n, h)


def check_head(
    levels: Sequence[Tensor],
    first: Tensor,
    projection: Tensor,
    weight: Tensor,
    bias: Tensor,
    factor: Tensor | None,
) -> None:
    """Raise ValueError unless the parts of a head fit each other."""
    if first.ndim != 4:
        raise ValueError(f"expected the first level [B, C, h, w], got {list(first.shape)}")
    check_levels(levels, first.shape[2:])
    b, e = levels[0].shape[:2]
    wanted = {
        "first": (first, (b, *first.shape[1:])),
        "projection": (projection, (e, first.shape[1])),
        "weight": (weight, (*weight.shape[:1], e)),
        "bias": (bias, tuple(weight.shape[:1])),
    }
    if factor is not None:
        wanted["factor"] = (factor, (b, e))
    for name, (x, shape) in wanted.items():
        if tuple(x.shape) != tuple(shape) or 0 in x.shape[1:]:
            raise ValueError(f"expected {name} {list(shape)}, got {list(x.shape)}")
        if x.device != levels[0].device or not x.is_floating_point():
            kind = f"{x.dtype} on {x.device}"
            raise ValueError(f"expected {name} of floats on {levels[0].device}, got {kind}")


def _pixels(x: Tensor) -> Tensor:
    """``[B, C, h, w]`` with the channels last in memory to ``[B h w, C]``, without a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(pixels: Tensor, n: int, h: int) -> Tensor:
    """Inverse of :func:`_pixels` for n samples of h rows."""
    return pixels.view(n, h, -1, pixels.shape[1]).permute(0, 3, 1, 2)


def _upsampled(level: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(level, tuple(size), mode="bilinear", align_corners=False)
