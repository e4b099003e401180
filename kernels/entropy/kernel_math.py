"""Parts of both regularisers inside a kernel: noise, softmax and divergence.

A tile is ``[BLOCK_R, BLOCK_D]``: softmax groups by members of a group, the members next to each
other in memory. One warp holds 256 numbers, eight per lane, so a reduction over a group is seven
additions inside the lane and at most five exchanges between lanes.

Noise is a function of (seed, stream, image, element, row), evaluated where it is needed: a Philox
counter of ten rounds gives four integers, two Box-Muller transforms make four normal numbers of
them. They are rows 4k to 4k + 3 of a noise tensor ``[rows, M, B, C, h, w]`` that never exists; the
element is counted in the order of a contiguous ``[C, h, w]``, whatever the layout in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from ..common.switch import UP

LONGEST = 4096
"""Longest softmax axis that a tile holds."""
FAST = not UP  # the interpreter has none of the instructions of the special function unit

WARP_TILE = 256
_LEAST_LOG = tl.constexpr(-40.0)  # as in the reference: keeps the ratio and its exponential finite
_LEAST_Q = tl.constexpr(math.exp(-40.0))
_NEAR = tl.constexpr(0.35)
_TWO_LN2 = tl.constexpr(2 * math.log(2))
_UNIT = tl.constexpr(2.0**-32)
_TURN = tl.constexpr(math.pi * 2.0**-31)


@triton.jit
def normal_pair(u, v, FAST: tl.constexpr):
    """Two independent standard normal numbers of two integers that are uniform in 32 bits."""
    # never zero, so the largest number is 6.8
    uniform = u.to(tl.float32) * _UNIT + 0.5 * _UNIT
    angle = v.to(tl.int32, bitcast=True).to(tl.float32) * _TURN
    if FAST:
        # sine and cosine are 7e-7 off on this range and the square 4e-7, for a third of the
        # instructions
        square = libdevice.fast_log2f(uniform) * -_TWO_LN2
        cosine, sine = libdevice.fast_cosf(angle), libdevice.fast_sinf(angle)
    else:
        square = tl.log2(uniform) * -_TWO_LN2
        cosine, sine = tl.cos(angle), tl.sin(angle)
    # the fast logarithm of a number just below one may be positive
    radius = tl.sqrt(tl.maximum(square, 0.0))
    return radius * cosine, radius * sine


@triton.jit
def draw_four(seed, index, image, call, stream, FAST: tl.constexpr):
    """Rows ``4 call`` to ``4 call + 3`` of the noise at elements ``index`` of one image."""
    u0, u1, u2, u3 = tl.philox(seed, index, image, call, stream)
    n0, n1 = normal_pair(u0, u1, FAST)
    n2, n3 = normal_pair(u2, u3, FAST)
    return n0, n1, n2, n3


@triton.jit
def exponential(x, FAST: tl.constexpr):
    """``exp(x)``."""
    if FAST:
        return libdevice.fast_expf(x)
    return tl.exp(x)


@triton.jit
def log_softmax(z, mask, TAIL: tl.constexpr, FAST: tl.constexpr):
    """``(log p, p)`` of the softmax along axis 1; both are zero outside ``mask``."""
    if TAIL:
        z = tl.where(mask, z, float("-inf"))
    z -= tl.max(z, 1)[:, None]
    p = exponential(z, FAST)
    total = tl.sum(p, 1)
    log_p = z - tl.log(total)[:, None]
    if TAIL:
        log_p = tl.where(mask, log_p, 0.0)
    return log_p, p * (1.0 / total)[:, None]


@triton.jit
def floor_softmax(log_q, q):
    """Both kept above exp(-40); a comparison, because a maximum would swallow a NaN."""
    low = log_q < _LEAST_LOG
    return tl.where(low, _LEAST_LOG, log_q), tl.where(low, _LEAST_Q, q)


@triton.jit
def compare_softmaxes(log_p, p, log_q, q):
    """``r = log p - log q``, ``p - q``, and the terms ``q (expm1(r) - r)`` of KL(q || p).

    No term is negative and none is a difference of nearly equal numbers.
    """
    ratio = log_p - log_q
    series = 2.48015873e-5 * ratio + 1.98412698e-4
    series = series * ratio + 1.38888889e-3
    series = series * ratio + 8.33333333e-3
    series = series * ratio + 4.16666667e-2
    series = series * ratio + 1.66666667e-1
    series = series * ratio + 0.5
    series = series * ratio * ratio  # expm1(ratio) - ratio
    near = tl.abs(ratio) < _NEAR
    difference = tl.where(near, q * (ratio + series), p - q)
    return ratio, difference, tl.where(near, q * series, difference - q * ratio)


@triton.jit
def sum_in_lane(terms, R: tl.constexpr, D: tl.constexpr, LANE: tl.constexpr):
    """Sums of ``LANE`` neighbours, which sit in one lane: the exchange waits until the end."""
    return tl.sum(tl.reshape(terms, (R, D // LANE, LANE)), 2)


class Tile(NamedTuple):
    """Shape of a level's tile."""

    BLOCK_R: int
    BLOCK_D: int
    LANE: int
    """Neighbours of a row that share a lane."""
    TAIL: bool
    """Whether the softmax axis is shorter than the tile."""


def pick_tiles(
    sizes: Sequence[tuple[int, int]], dtype: torch.dtype, elements: int = WARP_TILE
) -> tuple[list[Tile], int]:
    """The pinned tiles of a launch, and its warps.

    Args:
        sizes: ``(rows, length)``, softmax groups and members of a group, of every level.
        dtype: of the features.
        elements: of a warp, where a softmax group is not longer.
    """
    lane = 4 if dtype == torch.float32 else 8  # 16 bytes
    blocks = [max(16, triton.next_power_of_2(length)) for _, length in sizes]
    warps = max(1, max(blocks) // WARP_TILE)
    tiles = [
        Tile(
            min(max(1, warps * elements // block), triton.next_power_of_2(rows)), block, lane,
            length != block,
        )
        for (rows, length), block in zip(sizes, blocks, strict=True)
    ]  # fmt: skip
    return tiles, warps
