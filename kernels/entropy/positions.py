"""Noise scales of the released code's regulariser: the spread of the channels at each position.

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
from .rows import Rows, fresh, sections_of

_POSITION_BLOCK = (32, 64)  # channels, positions


class Positions(NamedTuple):
    """Levels as an argument of a kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program; one entry more, behind the last.
        x_ptr: rows of the student, contiguous within an image.
        x_step: their strides from modality to modality and from sample to sample.
        t_ptr: rows of the teacher.
        t_step: their strides.
        C: channels.
        P: positions of an image.
        share: what the squared deviations are multiplied by.
        places_before: positions of an image of the levels before.
    """

    start: Any
    x_ptr: Any
    x_step: Any
    t_ptr: Any
    t_step: Any
    C: Any
    P: Any
    share: Any
    places_before: Any


@triton.jit
def _position_sigma(
    x_ptr, step, mean_ptr, sigma_ptr, pid, B, C, P, share,
    HAS_MEAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Mean over the channels, and sqrt(share sum (x - mean)^2), at a block of positions."""
    image = tl.program_id(1).to(tl.int64)
    offs_p = pid * BLOCK_P + tl.arange(0, BLOCK_P)
    x_ptr += (image // B) * step[0] + (image % B) * step[1]
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
    levels, mean_ptr, sigma_ptr, B, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Spread of the channels at each position, of both sides, and the student's mean.

    Args:
        levels: :class:`Positions`.
        mean_ptr: float32, ``[M B, P]`` of every level in a row, written.
        sigma_ptr: float32, ``[2, M B, P]`` of every level in a row, written.
        B: samples.
        BLOCK_C: channels of a tile.
        BLOCK_P: positions of a tile.
    """
    pid, images = tl.program_id(0), tl.num_programs(1).to(tl.int64)
    for i in tl.static_range(len(levels.x_ptr)):
        if (pid >= levels.start[i]) & (pid < levels.start[i + 1]):
            C, P, share = levels.C[i], levels.P[i], levels.share[i]
            own = pid - levels.start[i]
            mean = mean_ptr + images * levels.places_before[i]
            sigma = sigma_ptr + 2 * images * levels.places_before[i]
            if tl.program_id(2) == 0:
                _position_sigma(
                    levels.x_ptr[i], levels.x_step[i], mean, sigma, own, B, C, P, share,
                    True, BLOCK_C, BLOCK_P,
                )  # fmt: skip
            else:
                _position_sigma(
                    levels.t_ptr[i], levels.t_step[i], mean, sigma + images * P, own, B, C, P,
                    share, False, BLOCK_C, BLOCK_P,
                )  # fmt: skip


def position_sigma(
    x: Sequence[Tensor], t: Sequence[Tensor], samples: int, sizes: Sequence[Rows]
) -> tuple[Tensor, Tensor]:
    """The student's mean over channels, ``[M, B, w, h]``, and the scales, ``[2, M, B, w, h]``.

    Both of every level, flat and in a row. A scale is the unbiased standard deviation over the
    channels and their S noisy copies.
    """
    block_c, block_p = _POSITION_BLOCK
    channels = tuple(size.shape[2] for size in sizes)
    positions = tuple(size.shape[3] * size.shape[4] for size in sizes)
    start = sections_of([triton.cdiv(p, block_p) for p in positions])
    b, images = sizes[0].shape[1], sizes[0].images
    mean, sigma = fresh(x[0], images * sum(positions)), fresh(x[0], 2 * images * sum(positions))
    _position_sigma_kernel[(start[-1], images, 2)](
        Positions(
            start=start, x_ptr=tuple(x), x_step=tuple(y.stride()[:2] for y in x),
            t_ptr=tuple(t), t_step=tuple(y.stride()[:2] for y in t), C=channels, P=positions,
            share=tuple(samples / (c * samples - 1) for c in channels),
            places_before=starts_of(positions),
        ),
        mean, sigma, b, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
    return mean, sigma
