"""The kernels of the prototypes' gradient: weighted sums of classes, and their projection.

The sums stay in one modality, since each has weights of its own.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.tiles import Maps, of_map, sample_labels, tf32_halves
from .cosine_kernels import _inverse_length, _limit_of, _steps


class Projections(NamedTuple):
    """Programs and places of the projection; every field is a tuple with an entry for each map.

    Attributes:
        start: the map's first program.
        C: channels.
        splits: chunks of its pixels.
        first: the program that has summed its first chunk and tile.
        tiles: programs that share a chunk.
        rank: place of the map in the counts.
        out: first element of its prototypes.
    """

    start: Any
    C: Any
    splits: Any
    first: Any
    tiles: Any
    rank: Any
    out: Any


@triton.jit
def _prototype_similarity_pull_kernel(
    maps, places, labels_ptr, grad_ptr, inverses_ptr, sums_ptr, B, H, W, label_stride_b,
    label_stride_h, label_stride_w, K,
    STRIDED: tl.constexpr, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A_k of a chunk: sums of the pixels of each class, of length one and weighted by the gradient.

    Args:
        maps: :class:`Maps`, a tile for some channels of a modality.
        places: first element of each map's similarities.
        labels_ptr: ``[B, H, W]`` integers.
        grad_ptr: float32, gradient of the similarities.
        inverses_ptr: float32, one over the length of each pixel.
        sums_ptr: ``[programs, K, BLOCK_N]`` float32, written.
        B: samples.
        H: rows of the label map.
        W: columns of the label map.
        label_stride_b: elements from sample to sample of the label map.
        label_stride_h: elements from row to row.
        label_stride_w: elements from column to column.
        K: classes.
        STRIDED: H and W are whole multiples of every map's height and width.
        CHANNELS_LAST: the channels of the features are contiguous, else the pixels.
        VEC: a power of two that divides all offsets, in elements.
        CHUNK: pixels of a program.
        BLOCK_K: classes of a tile, at least K.
        BLOCK_P: pixels of a tile.
        BLOCK_N: channels of a tile.
        SPLIT: multiply float32 features as sums of two tf32 numbers.
    """
    pid = tl.program_id(0)
    at = Maps(*of_map(maps.start, maps, pid))
    (place,) = of_map(maps.start, (places,), pid)
    C, height, width = at.C, at.height, at.width
    tile = (pid - at.start) % at.tiles
    rest = (pid - at.start) // at.tiles
    blocks = (C + BLOCK_N - 1) // BLOCK_N
    m = (tile // blocks).to(tl.int64)
    b = (rest % B).to(tl.int64)
    begin = rest // B * CHUNK
    labels_ptr += b * label_stride_b
    weights = place + (m * B + b) * (height * width)
    limit = _limit_of(height, width, CHANNELS_LAST, VEC)
    offs_c = tile % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    x_ptr, pixel_step, channel_step = _steps(
        at.x_ptr + m * (at.stride_m // VEC * VEC),
        b,
        begin,
        at.stride_b,
        at.stride_x,
        CHANNELS_LAST,
        VEC,
    )
    if CHANNELS_LAST:
        C = C // VEC * VEC
    offs_n = offs_c.to(tl.int64) * channel_step
    in_c = offs_c < C
    offs_k = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_K, BLOCK_N), dtype=tl.float32)
    for first in range(0, CHUNK, BLOCK_P):
        offs_j = first + tl.arange(0, BLOCK_P)
        offs_p = begin + offs_j
        label = sample_labels(labels_ptr, offs_p, height, width, H, W,
                              label_stride_h, label_stride_w, K, STRIDED)  # fmt: skip
        seen = label >= 0
        weight = (tl.load(grad_ptr + weights + offs_p, mask=seen, other=0.0)
                  * tl.load(inverses_ptr + weights + offs_p, mask=seen, other=0.0))  # fmt: skip
        x = tl.load(x_ptr + ((offs_j.to(tl.int64) * pixel_step)[:, None] + offs_n[None, :]),
                    mask=(offs_p < limit)[:, None] & in_c[None, :], other=0.0)  # fmt: skip
        of_class = offs_k[:, None] == label[None, :]
        upper, lower = tf32_halves(weight)
        upper = tl.where(of_class, upper[None, :], 0.0)
        lower = tl.where(of_class, lower[None, :], 0.0)
        if SPLIT:
            # the product of both lower halves is below the rounding of float32
            x, rest_x = tf32_halves(x)
            sums = tl.dot(upper, rest_x, sums, input_precision="tf32")
        # half precision has no more bits than tf32
        x = x.to(tl.float32)
        sums = tl.dot(lower, x, sums, input_precision="tf32")
        sums = tl.dot(upper, x, sums, input_precision="tf32")
    rows = pid.to(tl.int64) * K + offs_k
    tl.store(sums_ptr + (rows * BLOCK_N)[:, None] + tl.arange(0, BLOCK_N)[None, :], sums,
             mask=(offs_k < K)[:, None])  # fmt: skip


@triton.jit
def _prototype_similarity_project_kernel(
    projections, prototypes_ptr, counts_ptr, sums_ptr, directions_ptr, shares_ptr, B, K,
    SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    HAS_SUMS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """P^, a prototype at length one, and G_k, what turns it, over the count if there is one.

    Args:
        projections: :class:`Projections`.
        prototypes_ptr: float32, ``[M, B, K, C]`` of every map in a row.
        counts_ptr: ``[maps, B, K]`` int64.
        sums_ptr: ``[programs, K, BLOCK_N]`` float32, A_k of every chunk.
        directions_ptr: float32, P^ laid out like the prototypes, written.
        shares_ptr: float32, G_k laid out like them, written if there are sums.
        B: samples.
        K: classes.
        SPLITS: the largest number of chunks, a power of two.
        BLOCK_S: chunks of a tile.
        BLOCK_N: channels of a tile of the sums.
        BLOCK_C: channels of a tile: all of them.
        HAS_SUMS: there are sums.
        OWN: the prototypes are class means of the features: divide by the counts.
    """
    pid = tl.program_id(0)
    at = Projections(*of_map(projections.start, projections, pid))
    C = at.C
    k = (pid - at.start) % K
    rest = (pid - at.start) // K
    b = rest % B
    m = rest // B
    offs_c = tl.arange(0, BLOCK_C)
    in_c = offs_c < C
    offs = at.out + ((m * B + b).to(tl.int64) * K + k) * C + offs_c
    x = tl.load(prototypes_ptr + offs, mask=in_c, other=0.0)
    inverse = _inverse_length(tl.sum(x * x, axis=0))
    direction = x * inverse
    tl.store(directions_ptr + offs, direction, mask=in_c)
    if HAS_SUMS:
        blocks = (C + BLOCK_N - 1) // BLOCK_N
        sums = tl.zeros((BLOCK_S, BLOCK_C), dtype=tl.float32)
        for s in range(0, SPLITS, BLOCK_S):
            offs_s = s + tl.arange(0, BLOCK_S)
            programs = at.first + m * blocks + at.tiles * (b + B * offs_s).to(tl.int64)
            rows = (programs[:, None] + (offs_c // BLOCK_N)[None, :]) * K + k
            sums += tl.load(
                sums_ptr + rows * BLOCK_N + (offs_c % BLOCK_N)[None, :],
                mask=(offs_s < at.splits)[:, None] & in_c[None, :], other=0.0,
            )  # fmt: skip
        pull = tl.sum(sums, axis=0)
        # what turns the prototype; what only stretches it changes no cosine
        pull = (pull - tl.sum(pull * direction, axis=0) * direction) * inverse
        if OWN:
            count = tl.load(counts_ptr + (at.rank * B + b).to(tl.int64) * K + k)
            pull /= tl.maximum(count, 1).to(tl.float32)
        tl.store(shares_ptr + offs, pull, mask=in_c)
