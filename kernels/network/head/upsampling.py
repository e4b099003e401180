"""Sum of upsampled levels: one pass over the output, and one over its gradient for all levels.

    out = sum_i up(levels[i]),   dlevels[i] = up^T(dout)

Nothing of the output's size is made but the output. A program interpolates all levels at its
pixels; backward it gathers the pixels that touch its pixel of a level, with float32 sums in a fixed
order and one rounding, so that results repeat bit by bit. The backward pass of ``F.interpolate``
with the channels last adds atomically in the dtype of the gradient instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ... import reference
from ...common.device import on_device_of
from ...common.feature_maps import DTYPES, starts_of
from ...common.switch import DEVICES, UP, runs_on
from ...reference.network.mlp_head import check_levels
from .upsampling_kernels import (
    Gathers,
    Levels,
    _upsampled_sum_bwd_kernel,
    _upsampled_sum_fwd_kernel,
)

_BAND = 16  # rows of the output, with which the band's rows of all levels have to do
_MOST = 2**31 - 2**16  # rows of all samples and elements of one are counted in 32 bits


def tile_of(x: Tensor, pixels: int) -> dict[str, int]:
    """Tile of so many pixels of a map, half as many of float32."""
    return {
        "BLOCK_P": pixels // 2 if x.dtype == torch.float32 else pixels,
        "BLOCK_E": max(16, min(128, triton.next_power_of_2(x.shape[1]))),
        "num_warps": 4,
    }


def new_map(batch: int, size: Sequence[int], channels: int, like: Tensor) -> Tensor:
    """An uninitialised map ``[B, E, h, w]`` with the channels last in memory."""
    return like.new_empty((batch, *size, channels)).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The map itself where its memory is ``[B, h, w, E]``, else a copy that is."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def levels_of(levels: Sequence[Tensor], size: Sequence[int]) -> Levels:
    """Levels with the channels last as an argument of a kernel."""
    return Levels(
        height=tuple(x.shape[2] for x in levels),
        width=tuple(x.shape[3] for x in levels),
        scale_y=tuple(x.shape[2] / size[0] for x in levels),
        scale_x=tuple(x.shape[3] / size[1] for x in levels),
        y_ptr=tuple(levels),
    )


def taps(outputs: int, inputs: int) -> int:
    """Outputs that touch a row or column of a level, at most; see the kernel for the 1."""
    return -(-2 * outputs // inputs) + (outputs % inputs > 0)


def add_levels(levels: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The forward launch."""
    levels = [channels_last(x) for x in levels]
    b, e = levels[0].shape[:2]
    out = new_map(b, size, e, levels[0])
    tile = tile_of(out, 32)
    tiles, blocks = triton.cdiv(size[1], tile["BLOCK_P"]), triton.cdiv(e, tile["BLOCK_E"])
    with on_device_of(out):
        _upsampled_sum_fwd_kernel[(b * size[0] * tiles * blocks,)](
            levels_of(levels, size), out, *size, e, tiles, blocks, UP=UP, **tile
        )
    return out


def gather_levels(grad: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The backward launch; sizes are h and w of one level after the other."""
    b, e, *size = grad.shape
    found = [new_map(b, pair, e, grad) for pair in zip(sizes[::2], sizes[1::2], strict=True)]
    grad = channels_last(grad)
    tile = tile_of(grad, 16)
    blocks = triton.cdiv(e, tile["BLOCK_E"])
    bands = triton.cdiv(size[0], _BAND)
    # the deepest first: its programs take longest
    levels = levels_of(found[::-1], size)
    rows = tuple(triton.cdiv(height, bands) for height in levels.height)
    tiles = tuple(triton.cdiv(width, tile["BLOCK_P"]) for width in levels.width)
    programs = [n * of_row * blocks for n, of_row in zip(rows, tiles, strict=True)]
    gathers = Gathers(
        start=starts_of(programs),
        rows=rows,
        tiles=tiles,
        taps_y=tuple(taps(size[0], height) for height in levels.height),
        taps_x=tuple(taps(size[1], width) for width in levels.width),
        **levels._asdict(),
    )
    with on_device_of(grad):
        _upsampled_sum_bwd_kernel[(b * bands * sum(programs),)](
            gathers, grad, bands, sum(programs), *size, e, blocks, UP=UP, **tile
        )
    return found


@torch.library.custom_op("fastseg::upsampled_sum", mutates_args=(), device_types=DEVICES)
def _upsampled_sum(levels: Sequence[Tensor], height: int, width: int) -> Tensor:
    return add_levels(levels, (height, width))


@_upsampled_sum.register_fake
def _(levels: Sequence[Tensor], height: int, width: int) -> Tensor:
    return new_map(levels[0].shape[0], (height, width), levels[0].shape[1], levels[0])


@torch.library.custom_op("fastseg::upsampled_sum_bwd", mutates_args=(), device_types=DEVICES)
def upsampled_sum_bwd(grad: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """:func:`gather_levels` as an operator."""
    return gather_levels(grad, sizes)


@upsampled_sum_bwd.register_fake
def _(grad: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    b, e = grad.shape[:2]
    return [new_map(b, pair, e, grad) for pair in zip(sizes[::2], sizes[1::2], strict=True)]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.sizes = [number for x in inputs[0] for number in x.shape[2:]]


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None]:
    return upsampled_sum_bwd(grad, ctx.sizes), None, None


_upsampled_sum.register_autograd(_backward, setup_context=_setup_context)


def served(levels: Sequence[Tensor], size: Sequence[int]) -> bool:
    """True if the kernels take these levels, which the definition accepts, and this size."""
    first = levels[0]
    return (
        # first, so that the definition works for sizes that a compiler leaves open
        runs_on(first)
        and all(x.shape[2] <= size[0] and x.shape[3] <= size[1] for x in levels)
        and 0 < first.shape[0] * size[0] < _MOST
        and first.shape[1] * size[0] * size[1] < _MOST
        and first.dtype in DTYPES
    )


def sum_of_upsampled(levels: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Maps of several sizes brought to one size and added.

        out = sum_i up(levels[i])

    ``up`` is bilinear interpolation as ``F.interpolate(.., align_corners=False)`` has it. On a GPU
    the sum is made in float32 and rounded once, and so is the gradient of each level. Float64, an
    empty batch and levels that are larger than the output take the definition.

    Args:
        levels: ``[B, E, h_i, w_i]`` of one float dtype, at least one. The channels last in memory
            are read in place, other strides copied.
        size: ``(H, W)``.

    Returns:
        ``[B, E, H, W]`` in the dtype of the levels, the channels last in memory.

    Raises:
        ValueError: there are no levels, or their shapes, dtypes or the size do not fit.
    """
    check_levels(levels, size)
    if not served(levels, size):
        return reference.sum_of_upsampled(levels, size)
    out: Tensor = _upsampled_sum(list(levels), *size)
    return out
