"""The kernels of the sum of upsampled levels: bilinear interpolation, and its gradient as a gather.

Maps are contiguous ``[B, h, w, E]``. Output row r lies at ``clamp((r + 1/2) h_i / H - 1/2, 0,
h_i - 1)`` of level i; a row of the level at distance d from there has the weight ``max(0, 1 - d)``.
Columns likewise. The gradient of a level's pixel is the sum of those of the output pixels around it
with the same weights, in float32 and a fixed order, and is rounded once.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...common.rounding import rounded_to
from ...common.tiles import of_map


class Levels(NamedTuple):
    """Levels as an argument of a kernel: every field is a tuple with an entry for each.

    Attributes:
        height: h_i.
        width: w_i.
        scale_y: ``h_i / H``.
        scale_x: ``w_i / W``.
        y_ptr: ``[B, h_i, w_i, E]``.
    """

    height: Any
    width: Any
    scale_y: Any
    scale_x: Any
    y_ptr: Any


class Gathers(NamedTuple):
    """Levels whose gradients are gathered; every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program of those of a band.
        rows: of the level in a band.
        tiles: of the level's columns.
        height: h_i.
        width: w_i.
        scale_y: ``h_i / H``.
        scale_x: ``w_i / W``.
        taps_y: rows of the output that touch a row of the level, at most.
        taps_x: the same of the columns.
        y_ptr: ``[B, h_i, w_i, E]``.
    """

    start: Any
    rows: Any
    tiles: Any
    height: Any
    width: Any
    scale_y: Any
    scale_x: Any
    taps_y: Any
    taps_x: Any
    y_ptr: Any


@triton.jit
def place_of(offs, size, scale):
    """Where rows or columns of the output lie among those of a level."""
    place = (offs.to(tl.float32) + 0.5) * scale - 0.5
    return tl.minimum(tl.maximum(place, 0.0), (size - 1) * 1.0)


@triton.jit
def neighbours(offs, size, scale):
    """The two rows or columns of a level that an output lies between; the second one's weight."""
    place = place_of(offs, size, scale)
    first = place.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), place - first.to(tl.float32)


@triton.jit
def sum_of_levels(levels, sample, row, column, offs_e, in_e, E):
    """Sum of the upsampled levels at columns of a row, ``[columns, channels]`` float32."""
    total = tl.zeros((column.shape[0], offs_e.shape[0]), dtype=tl.float32)
    mask = in_e[None, :]
    for i in tl.static_range(len(levels.y_ptr)):
        height, width = levels.height[i], levels.width[i]
        upper, lower, down = neighbours(row, height, levels.scale_y[i])
        left, right, along = neighbours(column, width, levels.scale_x[i])
        upper_ptr = levels.y_ptr[i] + (sample * height + upper).to(tl.int64) * width * E
        lower_ptr = levels.y_ptr[i] + (sample * height + lower).to(tl.int64) * width * E
        left, right = (left * E)[:, None] + offs_e[None, :], (right * E)[:, None] + offs_e[None, :]
        x00 = tl.load(upper_ptr + left, mask=mask, other=0.0).to(tl.float32)
        x01 = tl.load(upper_ptr + right, mask=mask, other=0.0).to(tl.float32)
        x10 = tl.load(lower_ptr + left, mask=mask, other=0.0).to(tl.float32)
        x11 = tl.load(lower_ptr + right, mask=mask, other=0.0).to(tl.float32)
        total += ((1.0 - along) * (1.0 - down))[:, None] * x00
        total += (along * (1.0 - down))[:, None] * x01
        total += ((1.0 - along) * down)[:, None] * x10
        total += (along * down)[:, None] * x11
    return total


@triton.jit
def _upsampled_sum_fwd_kernel(
    levels, out_ptr, H, W, E, tiles, blocks,
    BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """The sum of the upsampled levels.

    Args:
        levels: :class:`Levels`.
        out_ptr: ``[B, H, W, E]``, written.
        H: rows of the output.
        W: columns of the output.
        E: channels.
        tiles: of the columns.
        blocks: tiles of the channels.
        BLOCK_P: columns of a tile, all of one row.
        BLOCK_E: channels of a tile.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    pid = tl.program_id(0)
    line = pid // blocks // tiles
    offs_x = pid // blocks % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_e = pid % blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    in_x, in_e = offs_x < W, offs_e < E
    # what is beyond the last column reads it again
    column = tl.minimum(offs_x, W - 1)
    total = sum_of_levels(levels, line // H, line % H, column, offs_e, in_e, E)
    out_ptrs = out_ptr + line.to(tl.int64) * W * E + ((offs_x * E)[:, None] + offs_e[None, :])
    out = rounded_to(total, out_ptr.dtype.element_ty, UP)
    tl.store(out_ptrs, out, mask=in_x[:, None] & in_e[None, :])


@triton.jit
def _upsampled_sum_bwd_kernel(
    gathers, grad_ptr, bands, programs, H, W, E, blocks,
    BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradients of all levels.

    Args:
        gathers: :class:`Gathers`; ``y_ptr`` are the gradients, which are written.
        grad_ptr: ``[B, H, W, E]``, gradient of the sum.
        bands: parts of a sample, each some rows of every level. Programs of a band run at about
            the same time and find in the cache what they share of the gradient.
        programs: of a band.
        H: rows of the sum.
        W: columns of the sum.
        E: channels.
        blocks: tiles of the channels.
        BLOCK_P: columns of a tile, all of one row of a level.
        BLOCK_E: channels of a tile.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    pid = tl.program_id(0)
    at = Gathers(*of_map(gathers.start, gathers, pid % programs))
    sample = pid // programs // bands
    tile = (pid % programs - at.start) // blocks
    row = pid // programs % bands * at.rows + tile // at.tiles
    offs_x = tile % at.tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_e = (pid % programs - at.start) % blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    in_x, in_e = (offs_x < at.width) & (row < at.height), offs_e < E
    # the first output that lies beyond the row before; the small number is for what is rounded
    top = tl.ceil((row - 0.5) / at.scale_y - (0.5 + 1 / 64)).to(tl.int32)
    left = tl.ceil((offs_x - 0.5) / at.scale_x - (0.5 + 1 / 64)).to(tl.int32)
    top, left = tl.maximum(top, 0), tl.maximum(left, 0)
    grad_ptr += (sample.to(tl.int64) * H + top) * W * E
    total = tl.zeros((BLOCK_P, BLOCK_E), dtype=tl.float32)
    for j in range(at.taps_x):
        x = left + j
        weight_x = 1.0 - tl.abs(place_of(x, at.width, at.scale_x) - offs_x)
        weight_x = tl.where(in_x & (x < W), tl.maximum(weight_x, 0.0), 0.0)
        mask = (weight_x > 0.0)[:, None] & in_e[None, :]
        offsets = (x * E)[:, None] + offs_e[None, :]
        for i in tl.range(at.taps_y, loop_unroll_factor=4):
            y = top + i
            weight_y = 1.0 - tl.abs(place_of(y, at.height, at.scale_y) - row)
            weight_y = tl.where(y < H, tl.maximum(weight_y, 0.0), 0.0)
            # what is beyond the last row reads it again, without a weight
            g_ptrs = grad_ptr + (tl.minimum(y, H - 1) - top) * W * E + offsets
            g = tl.load(g_ptrs, mask=mask, other=0.0)
            total += (weight_x * weight_y)[:, None] * g.to(tl.float32)
    line = (sample * at.height + row).to(tl.int64) * at.width * E
    y_ptrs = at.y_ptr + line + ((offs_x * E)[:, None] + offs_e[None, :])
    out = rounded_to(total, grad_ptr.dtype.element_ty, UP)
    tl.store(y_ptrs, out, mask=in_x[:, None] & in_e[None, :])
