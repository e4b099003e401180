"""The kernels of masked prototype pooling: partial sums, their reduction, and the gather.

They get the properties of all feature maps as a tuple with names whose fields are tuples, and pick
those of the map that a program belongs to. What wide loads need to know is compiled in: which axis
is contiguous, and a power of two that divides all offsets, ``VEC``.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.rounding import rounded_to
from ..common.tiles import Maps, of_map, sample_labels, tf32_halves


class Reductions(NamedTuple):
    """Programs and places of the reduction; every field is a tuple with an entry for each map.

    Attributes:
        start: the map's first program.
        splits: chunks of its pixels.
        first: the program that has summed its first chunk and tile.
        tiles: programs that share a chunk.
        count_first: the program that has counted the first chunk of a map of this size.
        count_tiles: programs that share a chunk of that map.
        rank: place of the map in the counts.
        C: channels.
        columns: M times C.
        out: first element of its prototypes.
    """

    start: Any
    splits: Any
    first: Any
    tiles: Any
    count_first: Any
    count_tiles: Any
    rank: Any
    C: Any
    columns: Any
    out: Any


class Places(NamedTuple):
    """Places of the results; every field is a tuple with an entry for each map.

    Attributes:
        rank: place of the map in the counts.
        out: first element of its prototypes.
    """

    rank: Any
    out: Any


@triton.jit
def map_columns(block, C, columns, stride_m, stride_c,
                CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """A tile of the M C columns: modality, channel, offset in memory, whether it exists."""
    offs_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    m = offs_n // C
    c = offs_n - m * C
    if CHANNELS_LAST:
        # VEC divides C, so VEC neighbours lie in one modality
        offset = tl.max_contiguous(tl.multiple_of(m.to(tl.int64) * stride_m + c, VEC), VEC)
    else:
        offset = m.to(tl.int64) * stride_m + c.to(tl.int64) * stride_c
    return m, c, offset, offs_n < columns


@triton.jit
def _prototype_pool_fwd_kernel(
    maps, labels_ptr, sums_ptr, pixels_ptr, B, H, W, label_stride_b, label_stride_h,
    label_stride_w, K,
    STRIDED: tl.constexpr, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Sums of the features of every class over a chunk of pixels, or the numbers of its pixels.

    Args:
        maps: :class:`Maps`, with a tile more for the first map of each size: that one counts.
        labels_ptr: ``[B, H, W]`` integers.
        sums_ptr: ``[programs, K, BLOCK_N]`` float32, written by the programs that sum.
        pixels_ptr: ``[programs, K]`` int32, written by the programs that count.
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
        BLOCK_N: columns of a tile.
        SPLIT: multiply float32 features as sums of two tf32 numbers.
        UP: cast bfloat16 to float32 after each load.
    """
    pid = tl.program_id(0)
    at = Maps(*of_map(maps.start, maps, pid))
    C, columns, height, width = at.C, at.columns, at.height, at.width
    block = (pid - at.start) % at.tiles
    rest = (pid - at.start) // at.tiles
    b = (rest % B).to(tl.int64)
    begin = (rest // B).to(tl.int64) * CHUNK
    labels_ptr += b * label_stride_b
    offs_k = tl.arange(0, BLOCK_K)
    row = pid.to(tl.int64) * K + offs_k
    if block * BLOCK_N >= columns:
        # one tile more than the columns need: it counts, once per sample and level
        offs_p = begin.to(tl.int32) + tl.arange(0, CHUNK)
        label = sample_labels(labels_ptr, offs_p, height, width, H, W,
                              label_stride_h, label_stride_w, K, STRIDED)  # fmt: skip
        pixels = tl.histogram(label, BLOCK_K, mask=label >= 0)
        tl.store(pixels_ptr + row, pixels, mask=offs_k < K)
    else:
        # divided and multiplied back, to tell the compiler that VEC divides
        stride_m, stride_b = at.stride_m // VEC * VEC, at.stride_b // VEC * VEC
        stride_x = at.stride_x
        step = stride_x // VEC * VEC if CHANNELS_LAST else 1
        limit = height * width if CHANNELS_LAST else height * width // VEC * VEC
        if CHANNELS_LAST:
            C, columns = C // VEC * VEC, columns // VEC * VEC
        else:
            stride_x = stride_x // VEC * VEC
        _m, _c, offs_n, in_n = map_columns(block, C, columns, stride_m, stride_x,
                                           CHANNELS_LAST, VEC, BLOCK_N)  # fmt: skip
        x_ptr = at.x_ptr + (b * stride_b + begin * step)
        x_ptr = tl.multiple_of(x_ptr, VEC * x_ptr.dtype.element_ty.primitive_bitwidth // 8)
        sums = tl.zeros((BLOCK_K, BLOCK_N), dtype=tl.float32)
        for first in range(0, CHUNK, BLOCK_P):
            offs_j = first + tl.arange(0, BLOCK_P)
            offs_p = begin.to(tl.int32) + offs_j
            label = sample_labels(labels_ptr, offs_p, height, width, H, W,
                                  label_stride_h, label_stride_w, K, STRIDED)  # fmt: skip
            x = tl.load(x_ptr + ((offs_j * step)[:, None] + offs_n[None, :]),
                        mask=(offs_p < limit)[:, None] & in_n[None, :], other=0.0)  # fmt: skip
            if UP:
                x = x.to(tl.float32)
            onehot = (offs_k[:, None] == label[None, :]).to(x.dtype)
            if SPLIT:
                upper, lower = tf32_halves(x)
                sums = tl.dot(onehot, lower, sums, input_precision="tf32")
                sums = tl.dot(onehot, upper, sums, input_precision="tf32")
            else:
                sums = tl.dot(onehot, x, sums)
        sums_ptrs = sums_ptr + row[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.store(sums_ptrs, sums, mask=(offs_k < K)[:, None])


@triton.jit
def _prototype_pool_reduce_kernel(
    reductions, sums_ptr, pixels_ptr, prototypes_ptr, counts_ptr, B, K,
    TWICE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Class means and counts from the sums of the chunks, added in a fixed order.

    Args:
        reductions: :class:`Reductions`.
        sums_ptr: ``[programs, K, BLOCK_N]`` float32, of the forward kernel.
        pixels_ptr: ``[programs, K]`` int32, of the forward kernel.
        prototypes_ptr: float32, ``[M, B, K, C]`` of every map in a row, written.
        counts_ptr: ``[maps, B, K]`` int64, written.
        B: samples.
        K: classes.
        TWICE: divide by the count a second time.
        SPLITS: the largest number of chunks, a power of two.
        BLOCK_S: chunks of a tile.
        BLOCK_N: columns of a tile.
    """
    pid = tl.program_id(0)
    at = Reductions(*of_map(reductions.start, reductions, pid))
    k = (pid - at.start) % K
    rest = (pid - at.start) // K
    b = rest % B
    block = rest // B
    offs_j = tl.arange(0, BLOCK_N)
    pixels = tl.zeros((BLOCK_S,), dtype=tl.int32)
    sums = tl.zeros((BLOCK_S, BLOCK_N), dtype=tl.float32)
    for s in range(0, SPLITS, BLOCK_S):
        offs_s = s + tl.arange(0, BLOCK_S)
        mask = offs_s < at.splits
        chunk = (offs_s * B + b).to(tl.int64)
        # of the first map of this size: its last tile has counted
        pixels_ptrs = pixels_ptr + (at.count_first + chunk * at.count_tiles) * K + k
        pixels += tl.load(pixels_ptrs, mask=mask, other=0)
        rows = ((at.first + block + chunk * at.tiles) * K + k) * BLOCK_N
        sums += tl.load(sums_ptr + rows[:, None] + offs_j[None, :], mask=mask[:, None], other=0.0)
    count = tl.sum(pixels, axis=0)
    number = tl.maximum(count, 1).to(tl.float32)
    mean = tl.sum(sums, axis=0) / (number * number if TWICE else number)
    offs_n = block * BLOCK_N + offs_j
    rows = ((offs_n // at.C * B + b).to(tl.int64) * K + k) * at.C + at.out
    tl.store(prototypes_ptr + rows + offs_n % at.C, mean, mask=offs_n < at.columns)
    if block == 0:
        tl.store(counts_ptr + (at.rank * B + b) * K + k, count.to(tl.int64))


@triton.jit
def _prototype_pool_bwd_kernel(
    maps, places, labels_ptr, grad_ptr, counts_ptr, scale_ptr, B, H, W, label_stride_b,
    label_stride_h, label_stride_w, K,
    STRIDED: tl.constexpr, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, HAS_SCALE: tl.constexpr, TWICE: tl.constexpr,
    UP: tl.constexpr,
):  # fmt: skip
    """Gradient of the features: each pixel takes its class's over that class's count.

    Args:
        maps: :class:`Maps` of the gradients, which are written.
        places: :class:`Places`.
        labels_ptr: ``[B, H, W]`` integers.
        grad_ptr: float32, gradient of the prototypes, ``[M, B, K, C]`` of every map in a row.
        counts_ptr: ``[maps, B, K]`` int64.
        scale_ptr: one number, a factor of the gradient, if there is one.
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
        BLOCK_P: pixels of a tile.
        BLOCK_N: columns of a tile.
        HAS_SCALE: there is a scale.
        TWICE: divide by the count a second time.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    pid = tl.program_id(0)
    at = Maps(*of_map(maps.start, maps, pid))
    place = Places(*of_map(maps.start, places, pid))
    C, columns, height, width = at.C, at.columns, at.height, at.width
    block = (pid - at.start) % at.tiles
    rest = (pid - at.start) // at.tiles
    b = (rest % B).to(tl.int64)
    begin = (rest // B).to(tl.int64) * CHUNK
    stride_m, stride_b, stride_x = at.stride_m // VEC * VEC, at.stride_b // VEC * VEC, at.stride_x
    step = stride_x // VEC * VEC if CHANNELS_LAST else 1
    limit = height * width if CHANNELS_LAST else height * width // VEC * VEC
    labels_ptr += b * label_stride_b
    counts_ptr += (place.rank * B + b) * K
    grad_ptr += place.out // VEC * VEC if CHANNELS_LAST else place.out
    x_ptr = at.x_ptr + (b * stride_b + begin * step)
    x_ptr = tl.multiple_of(x_ptr, VEC * x_ptr.dtype.element_ty.primitive_bitwidth // 8)
    scale = tl.load(scale_ptr).to(tl.float32) if HAS_SCALE else 1.0
    for first in range(0, CHUNK, BLOCK_P):
        offs_j = first + tl.arange(0, BLOCK_P)
        offs_p = begin.to(tl.int32) + offs_j
        in_p = offs_p < limit
        label = sample_labels(labels_ptr, offs_p, height, width, H, W,
                              label_stride_h, label_stride_w, K, STRIDED)  # fmt: skip
        seen = label >= 0
        row = tl.maximum(label, 0)
        number = tl.load(counts_ptr + row, mask=seen, other=1).to(tl.float32)
        share = scale / (number * number if TWICE else number)
        if CHANNELS_LAST:
            C, columns = C // VEC * VEC, columns // VEC * VEC
            m, c, offs_n, in_n = map_columns(block, C, columns, stride_m, stride_x,
                                             CHANNELS_LAST, VEC, BLOCK_N)  # fmt: skip
            offs_g = tl.max_contiguous(tl.multiple_of((m * B + b) * K * C + c, VEC), VEC)
            x = tl.load(grad_ptr + ((row * C)[:, None] + offs_g[None, :]),
                        mask=seen[:, None] & in_n[None, :], other=0.0)  # fmt: skip
            x = rounded_to(x * share[:, None], x_ptr.dtype.element_ty, UP)
            tl.store(x_ptr + ((offs_j * step)[:, None] + offs_n[None, :]), x,
                     mask=in_p[:, None] & in_n[None, :])  # fmt: skip
        else:
            # column by column: a tile of both axes would look labels up again for every column
            for n in range(block * BLOCK_N, tl.minimum(block * BLOCK_N + BLOCK_N, columns)):
                m = n // C
                c = n - m * C
                x = tl.load(grad_ptr + ((m * B + b) * K * C + c) + row * C, mask=seen, other=0.0)
                offs_n = m.to(tl.int64) * stride_m + c.to(tl.int64) * (stride_x // VEC * VEC)
                x = rounded_to(x * share, x_ptr.dtype.element_ty, UP)
                tl.store(x_ptr + offs_n + offs_j, x, mask=in_p)
