"""Noise scales of the paper's regulariser: the spread of each channel.

They come from the rows of ``rows.to_rows``, of both sides of all levels in one launch, by means
first and squared deviations from them second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..common.feature_maps import starts_of
from ..common.tiles import of_map
from .rows import Rows, fresh, group_step, sections_of

_SPREAD_BLOCK = (128, 32)  # along the contiguous axis, along the other


class Spreads(NamedTuple):
    """Levels as an argument of a kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program; one entry more, behind the last.
        x_ptr: rows of the student.
        x_step: their strides from modality to modality, sample to sample, channel to channel, pixel
            to pixel.
        t_ptr: rows of the teacher.
        t_step: their strides.
        C: channels.
        P: pixels of an image.
        parts_before: parts of an image, times channels, of the levels before.
    """

    start: Any
    x_ptr: Any
    x_step: Any
    t_ptr: Any
    t_step: Any
    C: Any
    P: Any
    parts_before: Any


class Parts(NamedTuple):
    """What the second launch knows of the levels; every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program.
        C: channels.
        P: pixels of an image.
        number: blocks of pixels of an image.
        parts_before: parts of an image, times channels, of the levels before.
        channels_before: channels of the levels before.
    """

    start: Any
    C: Any
    P: Any
    number: Any
    parts_before: Any
    channels_before: Any


@triton.jit
def _spread_part(
    x_ptr, step, parts_ptr, pid, C, P, B, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Mean and sum of squared deviations of each channel over one block of pixels."""
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    blocks = tl.cdiv(C, BLOCK_C)
    offs_c = (pid % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = (pid // blocks) * BLOCK_P
    offs_p = start + tl.arange(0, BLOCK_P)
    mask = (offs_p < P)[:, None] & (offs_c < C)[None, :]
    x_ptr += (image // B) * step[0] + (image % B) * step[1]
    ptrs = x_ptr + offs_p[:, None].to(tl.int64) * step[3] + offs_c[None, :] * step[2]
    x = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
    count = tl.minimum(P - start, BLOCK_P).to(tl.float32)
    mean = tl.sum(x, 0) / count
    centred = tl.where(mask, x - mean[None, :], 0.0)
    parts = tl.cdiv(P, BLOCK_P)
    out = parts_ptr + (image * parts + pid // blocks) * C + offs_c
    tl.store(out, mean, mask=offs_c < C)
    tl.store(out + images * parts * C, tl.sum(centred * centred, 0), mask=offs_c < C)


@triton.jit
def _spread_part_kernel(levels, parts_ptr, B, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Means and squared deviations of each channel over blocks of pixels, of both sides.

    Args:
        levels: :class:`Spreads`.
        parts_ptr: float32, ``[2, 2, M B, blocks, C]`` of every level in a row, written: by side,
            means and squares.
        B: samples.
        BLOCK_P: pixels of a tile.
        BLOCK_C: channels of a tile.
    """
    pid, images = tl.program_id(0), tl.num_programs(1).to(tl.int64)
    for i in tl.static_range(len(levels.x_ptr)):
        if (pid >= levels.start[i]) & (pid < levels.start[i + 1]):
            C, P = levels.C[i], levels.P[i]
            own = pid - levels.start[i]
            out_ptr = parts_ptr + 4 * images * levels.parts_before[i]
            if tl.program_id(2) == 0:
                _spread_part(
                    levels.x_ptr[i], levels.x_step[i], out_ptr, own, C, P, B, BLOCK_P, BLOCK_C
                )
            else:
                out_ptr += 2 * images * tl.cdiv(P, BLOCK_P) * C
                _spread_part(
                    levels.t_ptr[i], levels.t_step[i], out_ptr, own, C, P, B, BLOCK_P, BLOCK_C
                )


@triton.jit
def _spread_finish_kernel(
    levels, parts_ptr, sigma_ptr, B,
    LENGTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Population standard deviation of a channel of a modality from its parts, in a fixed order.

    Args:
        levels: :class:`Parts`.
        parts_ptr: float32, of the kernel before.
        sigma_ptr: float32, ``[2, M, C]`` of every level in a row, written.
        B: samples.
        LENGTH: pixels of a block.
        BLOCK_N: parts of a tile.
        BLOCK_C: channels of a tile.
    """
    pid, modality = tl.program_id(0), tl.program_id(1).to(tl.int64)
    side, modalities = tl.program_id(2).to(tl.int64), tl.num_programs(1).to(tl.int64)
    at = Parts(*of_map(levels.start, levels, pid))
    C, P, PARTS = at.C, at.P, at.number
    offs_c = (pid - at.start) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_n = tl.arange(0, BLOCK_N)
    images = modalities * B
    parts_ptr += 4 * images * at.parts_before
    parts_ptr += (2 * side * images + modality * B) * PARTS * C
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
    out = sigma_ptr + 2 * modalities * at.channels_before + (side * modalities + modality) * C
    tl.store(out + offs_c, sigma, mask=offs_c < C)


def channel_sigma(
    x: Sequence[Tensor], t: Sequence[Tensor], dim: int, sizes: Sequence[Rows]
) -> Tensor:
    """``reference.channel_sigma`` of both sides: ``[2, M, C]`` of every level in a row, flat."""
    m, b = sizes[0].shape[:2]
    channel_axis = 4 if dim == 2 else 2
    channels = tuple(size.shape[channel_axis] for size in sizes)
    pixels = tuple(size.elements // c for size, c in zip(sizes, channels, strict=True))
    # the tile is long along the axis that is contiguous in memory
    block_c, block_p = _SPREAD_BLOCK if dim == 2 else _SPREAD_BLOCK[::-1]
    parts = tuple(triton.cdiv(p, block_p) for p in pixels)
    before = starts_of([n * c for n, c in zip(parts, channels, strict=True)])
    start = sections_of([n * triton.cdiv(c, block_c) for n, c in zip(parts, channels, strict=True)])

    def steps(view: Tensor) -> tuple[int | None, ...]:
        inside = (1, group_step(view)) if dim == 2 else (view.shape[3] * view.shape[4], 1)
        return (*view.stride()[:2], *inside)

    partial = fresh(x[0], 4 * m * b * sum(n * c for n, c in zip(parts, channels, strict=True)))
    _spread_part_kernel[(start[-1], m * b, 2)](
        Spreads(
            start=start, x_ptr=tuple(x), x_step=tuple(map(steps, x)), t_ptr=tuple(t),
            t_step=tuple(map(steps, t)), C=channels, P=pixels, parts_before=before,
        ),
        partial, b, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    sigma = fresh(x[0], 2 * m * sum(channels))
    blocks = [triton.cdiv(c, 32) for c in channels]
    _spread_finish_kernel[(sum(blocks), m, 2)](
        Parts(
            start=starts_of(blocks), C=channels, P=pixels, number=parts, parts_before=before,
            channels_before=starts_of(channels),
        ),
        partial, sigma, b, LENGTH=block_p, BLOCK_N=128, BLOCK_C=32, num_warps=4,
    )  # fmt: skip
    return sigma
