"""Noise scales of both regularisers: the spread of each channel, and of each position's channels.

Both come from the rows of ``rows.to_rows``, of student and teacher in one
launch, by means first and squared deviations from them second.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .rows import Rows, fresh

_SPREAD_BLOCK = (128, 32)
_POSITION_BLOCK = (32, 64)  # channels, positions


@triton.jit
def _spread_part(x_ptr, parts_ptr, C, P, x_c, x_p, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and sum of squared deviations of each channel over one block of pixels."""
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    blocks = tl.cdiv(C, BLOCK_C)
    offs_c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = (tl.program_id(0) // blocks) * BLOCK_P
    offs_p = start + tl.arange(0, BLOCK_P)
    mask = (offs_p < P)[:, None] & (offs_c < C)[None, :]
    ptrs = x_ptr + image * C * P + offs_p[:, None].to(tl.int64) * x_p + offs_c[None, :] * x_c
    x = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
    count = tl.minimum(P - start, BLOCK_P).to(tl.float32)
    mean = tl.sum(x, 0) / count
    centred = tl.where(mask, x - mean[None, :], 0.0)
    parts = tl.num_programs(0) // blocks
    out = parts_ptr + (image * parts + tl.program_id(0) // blocks) * C + offs_c
    tl.store(out, mean, mask=offs_c < C)
    tl.store(out + images * parts * C, tl.sum(centred * centred, 0), mask=offs_c < C)


@triton.jit
def _spread_part_kernel(
    x_ptr, t_ptr, parts_ptr, next_side, C, P, x_c, x_p,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Means and squared deviations of each channel over blocks of pixels, of both sides.

    Args:
        x_ptr: rows of the student, contiguous.
        t_ptr: rows of the teacher likewise.
        parts_ptr: ``[2, 2, M B, blocks, C]`` float32, written: by side, means and squares.
        next_side: elements from the student's results to the teacher's.
        C: channels.
        P: pixels of an image.
        x_c: elements from channel to channel.
        x_p: elements from pixel to pixel.
        BLOCK_P: pixels of a tile.
        BLOCK_C: channels of a tile.
    """
    if tl.program_id(2) == 0:
        _spread_part(x_ptr, parts_ptr, C, P, x_c, x_p, BLOCK_P, BLOCK_C)
    else:
        _spread_part(t_ptr, parts_ptr + next_side, C, P, x_c, x_p, BLOCK_P, BLOCK_C)


@triton.jit
def _spread_finish_kernel(
    parts_ptr, sigma_ptr, next_side, B, C, P, PARTS,
    LENGTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Population standard deviation of a channel of a modality from its parts, in a fixed order.

    Args:
        parts_ptr: ``[2, 2, M B, PARTS, C]`` float32, of the kernel before.
        sigma_ptr: ``[2, M, C]`` float32, written.
        next_side: elements from the student's results to the teacher's.
        B: samples.
        C: channels.
        P: pixels of an image.
        PARTS: blocks of pixels of an image.
        LENGTH: pixels of a block.
        BLOCK_N: parts of a tile.
        BLOCK_C: channels of a tile.
    """
    modality, side = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_n = tl.arange(0, BLOCK_N)
    images = tl.num_programs(1).to(tl.int64) * B
    parts_ptr += side * next_side + modality * B * PARTS * C
    mean = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    for start in range(0, B * PARTS, BLOCK_N):
        n = start + offs_n
        count = tl.minimum(P - (n % PARTS) * LENGTH, LENGTH).to(tl.float32)
        mask = (n < B * PARTS)[:, None] & (offs_c < C)[None, :]
        part = tl.load(parts_ptr + n[:, None] * C + offs_c[None, :], mask=mask, other=0.0)
        mean += part * (count / P / B)[:, None]
    centre = tl.sum(mean, 0)
    square = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    for start in range(0, B * PARTS, BLOCK_N):
        n = start + offs_n
        count = tl.minimum(P - (n % PARTS) * LENGTH, LENGTH).to(tl.float32)
        mask = (n < B * PARTS)[:, None] & (offs_c < C)[None, :]
        ptrs = parts_ptr + n[:, None] * C + offs_c[None, :]
        gap = tl.load(ptrs, mask=mask, other=0.0) - centre[None, :]
        within = tl.load(ptrs + images * PARTS * C, mask=mask, other=0.0)
        square += tl.where(mask, within + gap * gap * count[:, None], 0.0) / P / B
    sigma = tl.sqrt(tl.sum(square, 0))
    out = sigma_ptr + (side * tl.num_programs(1) + modality) * C + offs_c
    tl.store(out, sigma, mask=offs_c < C)


def channel_sigma(x: Tensor, t: Tensor, dim: int, sizes: Rows) -> Tensor:
    """``reference.channel_sigma`` of both sides, ``[2, M, C]``."""
    m, b = sizes.shape[:2]
    if dim == 2:
        channels, pixels, steps = sizes.shape[4], sizes.groups, (1, sizes.shape[4])
    else:
        channels, pixels = sizes.shape[2], sizes.shape[3] * sizes.shape[4]
        steps = (pixels, 1)
    # the tile is long along the axis that is contiguous in memory
    block_c, block_p = _SPREAD_BLOCK if dim == 2 else _SPREAD_BLOCK[::-1]
    parts = triton.cdiv(pixels, block_p)
    partial = fresh(x, 2, 2, m * b, parts, channels)
    _spread_part_kernel[(parts * triton.cdiv(channels, block_c), m * b, 2)](
        x, t, partial, partial.stride(0), channels, pixels, *steps,
        BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    sigma = fresh(x, 2, m, channels)
    _spread_finish_kernel[(triton.cdiv(channels, 32), m, 2)](
        partial, sigma, partial.stride(0), b, channels, pixels, parts,
        LENGTH=block_p, BLOCK_N=128, BLOCK_C=32, num_warps=4,
    )  # fmt: skip
    return sigma


@triton.jit
def _position_sigma(
    x_ptr, mean_ptr, sigma_ptr, C, P, share,
    HAS_MEAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Mean over the channels, and sqrt(share sum (x - mean)^2), at a block of positions."""
    image = tl.program_id(1).to(tl.int64)
    offs_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    x_ptr += image * C * P
    # sums of differences from the first channel: none where the channels agree, whatever the
    # rounding of the quotient, and so no spread
    first = tl.load(x_ptr + offs_p, mask=offs_p < P, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask = (offs_c < C)[:, None] & (offs_p < P)[None, :]
        ptrs = x_ptr + offs_c[:, None].to(tl.int64) * P + offs_p[None, :]
        x = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
        total += tl.where(mask, x - first[None, :], 0.0)
    mean = first + tl.sum(total, 0) / C
    square = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask = (offs_c < C)[:, None] & (offs_p < P)[None, :]
        ptrs = x_ptr + offs_c[:, None].to(tl.int64) * P + offs_p[None, :]
        centred = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
        square += tl.where(mask, centred * centred, 0.0)
    out = image * P + offs_p
    tl.store(sigma_ptr + out, tl.sqrt(tl.sum(square, 0) * share), mask=offs_p < P)
    if HAS_MEAN:
        tl.store(mean_ptr + out, mean, mask=offs_p < P)


@triton.jit
def _position_sigma_kernel(
    x_ptr, t_ptr, mean_ptr, sigma_ptr, next_side, C, P, share,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Spread of the channels at each position, of both sides, and the student's mean.

    Args:
        x_ptr: rows of the student, contiguous.
        t_ptr: rows of the teacher likewise.
        mean_ptr: ``[M B, P]`` float32, written.
        sigma_ptr: ``[2, M B, P]`` float32, written.
        next_side: elements from the student's results to the teacher's.
        C: channels.
        P: pixels of an image.
        share: what the squared deviations are multiplied by.
        BLOCK_C: channels of a tile.
        BLOCK_P: pixels of a tile.
    """
    if tl.program_id(2) == 0:
        _position_sigma(x_ptr, mean_ptr, sigma_ptr, C, P, share, True, BLOCK_C, BLOCK_P)
    else:
        sigma_ptr += next_side
        _position_sigma(t_ptr, mean_ptr, sigma_ptr, C, P, share, False, BLOCK_C, BLOCK_P)


def position_sigma(x: Tensor, t: Tensor, samples: int, sizes: Rows) -> tuple[Tensor, Tensor]:
    """The student's mean over channels, ``[M, B, w, h]``, and the scales, ``[2, M, B, w, h]``.

    A scale is the unbiased standard deviation over the channels and their S noisy copies.
    """
    m, b, channels, width, height = sizes.shape
    positions = width * height
    mean = fresh(x, m, b, width, height)
    sigma = fresh(x, 2, *mean.shape)
    block_c, block_p = _POSITION_BLOCK
    _position_sigma_kernel[(triton.cdiv(positions, block_p), m * b, 2)](
        x, t, mean, sigma, mean.numel(), channels, positions,
        samples / (channels * samples - 1), BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
    return mean, sigma
