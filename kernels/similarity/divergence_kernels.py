"""The kernels of the similarity divergence: the sums of whole maps, and values with the gradient.

Similarities lie in [-1, 1], so exponentials need no running maximum: with a temperature that is not
tiny ``exp((t - 1) / temperature)`` is neither zero nor above one.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.series import exp_terms, log1p
from ..common.tiles import of_map, sample_labels


class Levels(NamedTuple):
    """Similarity maps of the levels; an entry of each field for each level.

    Attributes:
        start: the level's first program.
        height: h.
        width: w.
        blocks: programs of a map.
        student_place: first element of the student's maps.
        teacher_place: first element of the teacher's.
    """

    start: Any
    height: Any
    width: Any
    blocks: Any
    student_place: Any
    teacher_place: Any


@triton.jit
def _pair_of_maps(levels, rows, labels_ptr, student_ptr, teacher_ptr, B, H, W, label_stride_b,
                  label_stride_h, label_stride_w, K, temperature,
                  STRIDED: tl.constexpr, WHOLE: tl.constexpr, ONE: tl.constexpr,
                  BLOCK_A: tl.constexpr, BLOCK_G: tl.constexpr):  # fmt: skip
    """A tile ``[entries, groups]`` of both maps: what every program begins with.

    Returns where the maps' programs and the student's tile are, whether an entry is in the map, has
    a class and takes part, exponentials of the teacher, and the difference of the logits.

    Args:
        levels: :class:`Levels`.
        rows: the teacher row of each student row.
        labels_ptr: ``[B, H, W]`` integers.
        student_ptr: float32, ``[M, B, h, w]`` of every level in a row.
        teacher_ptr: likewise.
        B: samples.
        H: rows of the label map.
        W: columns of the label map.
        label_stride_b: elements from sample to sample of the label map.
        label_stride_h: elements from row to row.
        label_stride_w: elements from column to column.
        K: classes.
        temperature: t.
        STRIDED: H and W are whole multiples of every map's height and width.
        WHOLE: softmaxes over whole maps, else over rows of pixels.
        ONE: ignored pixels take part with a similarity of one.
        BLOCK_A: entries of a tile along the softmax axis.
        BLOCK_G: softmaxes of a tile.
    """
    pid = tl.program_id(0)
    at = Levels(*of_map(levels.start, levels, pid))
    height, width, blocks = at.height, at.width, at.blocks
    block = (pid - at.start) % blocks
    rest = (pid - at.start) // blocks
    b = rest % B
    m = rest // B
    offs_a = tl.arange(0, BLOCK_A)[:, None]
    offs_g = tl.arange(0, BLOCK_G)[None, :]
    if WHOLE:
        offs_p = block * BLOCK_A + offs_a + offs_g
        in_map = offs_p < height * width
    else:
        row = block * BLOCK_G + offs_g
        offs_p = row * width + offs_a
        in_map = (row < height) & (offs_a < width)
    label = sample_labels(labels_ptr + b.to(tl.int64) * label_stride_b, offs_p, height, width, H, W,
                          label_stride_h, label_stride_w, K, STRIDED)  # fmt: skip
    seen = (label >= 0) & in_map
    teaches = m * 0
    for i in tl.static_range(len(rows)):
        teaches = tl.where(m == i, rows[i], teaches)
    size = height * width
    place = at.student_place + (m * B + b).to(tl.int64) * size + offs_p
    # what is ignored is one in both maps
    x = tl.load(student_ptr + place, mask=seen, other=1.0)
    t = tl.load(teacher_ptr + (at.teacher_place + (teaches * B + b).to(tl.int64) * size + offs_p),
                mask=seen, other=1.0)  # fmt: skip
    takes_part = in_map if ONE else seen
    weight = tl.where(takes_part, tl.exp((t - 1) / temperature), 0.0)
    first = at.start + (m * B + b) * blocks
    return first, blocks, m * B + b, place, in_map, seen, weight, (x - t) / temperature


@triton.jit
def _similarity_divergence_sum_kernel(
    levels, rows, labels_ptr, student_ptr, teacher_ptr, sums_ptr, B, H, W, label_stride_b,
    label_stride_h, label_stride_w, K, temperature,
    STRIDED: tl.constexpr, ONE: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """Two sums of a part of a map: the exponentials of the teacher, and what the student adds.

    Args:
        levels: :class:`Levels`.
        rows: the teacher row of each student row.
        labels_ptr: ``[B, H, W]`` integers.
        student_ptr: float32, ``[M, B, h, w]`` of every level in a row.
        teacher_ptr: likewise.
        sums_ptr: ``[programs, 2]`` float32, written.
        B: samples.
        H: rows of the label map.
        W: columns of the label map.
        label_stride_b: elements from sample to sample of the label map.
        label_stride_h: elements from row to row.
        label_stride_w: elements from column to column.
        K: classes.
        temperature: t.
        STRIDED: H and W are whole multiples of every map's height and width.
        ONE: ignored pixels take part with a similarity of one.
        BLOCK_A: entries of a tile along the softmax axis.
    """
    _, _, _, _, _, _, weight, apart = _pair_of_maps(
        levels, rows, labels_ptr, student_ptr, teacher_ptr, B, H, W, label_stride_b,
        label_stride_h, label_stride_w, K, temperature, STRIDED, True, ONE, BLOCK_A, 1
    )  # fmt: skip
    growth, _ = exp_terms(apart)
    sums_ptr += 2 * tl.program_id(0)
    tl.store(sums_ptr, tl.sum(tl.sum(weight, axis=1), axis=0))
    tl.store(sums_ptr + 1, tl.sum(tl.sum(weight * growth, axis=1), axis=0))


@triton.jit
def _similarity_divergence_fwd_kernel(
    levels, rows, labels_ptr, student_ptr, teacher_ptr, selected_ptr, sums_ptr, table_ptr,
    values_ptr, B, H, W, label_stride_b, label_stride_h, label_stride_w, K, temperature,
    STRIDED: tl.constexpr, WHOLE: tl.constexpr, ONE: tl.constexpr, SELECTED: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Divergence of a student's rows, or of a part of a map, from the teacher's, and the gradient.

    Args:
        levels: :class:`Levels`.
        rows: the teacher row of each student row.
        labels_ptr: ``[B, H, W]`` integers.
        student_ptr: float32, ``[M, B, h, w]`` of every level in a row.
        teacher_ptr: likewise.
        selected_ptr: ``[M, B]`` bool, the maps that take part.
        sums_ptr: ``[programs, 2]`` float32, of the kernel before, for whole maps.
        table_ptr: gradient of the student's maps, laid out like them, written.
        values_ptr: ``[programs]`` float32, each program's part of the value, written.
        B: samples.
        H: rows of the label map.
        W: columns of the label map.
        label_stride_b: elements from sample to sample of the label map.
        label_stride_h: elements from row to row.
        label_stride_w: elements from column to column.
        K: classes.
        temperature: t.
        STRIDED: H and W are whole multiples of every map's height and width.
        WHOLE: softmaxes over whole maps, else over rows of pixels.
        ONE: ignored pixels take part with a similarity of one.
        SELECTED: some maps take no part.
        BLOCK_A: entries of a tile along the softmax axis.
        BLOCK_G: softmaxes of a tile.
        BLOCK_S: parts of a map, a power of two that is at least their number.
    """
    first, blocks, pair, place, in_map, seen, weight, apart = _pair_of_maps(
        levels, rows, labels_ptr, student_ptr, teacher_ptr, B, H, W, label_stride_b,
        label_stride_h, label_stride_w, K, temperature, STRIDED, WHOLE, ONE, BLOCK_A, BLOCK_G
    )  # fmt: skip
    if WHOLE:
        offs_s = tl.arange(0, BLOCK_S)
        ptrs = sums_ptr + 2 * (first + offs_s)
        total = tl.sum(tl.load(ptrs, mask=offs_s < blocks, other=0.0), axis=0)
        moved = tl.sum(tl.load(ptrs + 1, mask=offs_s < blocks, other=0.0), axis=0)
    else:
        growth, _ = exp_terms(apart)
        total = tl.sum(weight, axis=0)[None, :]
        moved = tl.sum(weight * growth, axis=0)[None, :]
    # where nothing takes part all weights are zero
    total = tl.where(total > 0, total, 1.0)
    q = weight / total
    # log p - log q: the normalisers differ by the mean growth of the exponentials
    growth, excess = exp_terms(apart - log1p(moved / total))
    share = temperature / B
    if SELECTED:
        share = tl.where(tl.load(selected_ptr + pair) != 0, share, 0.0)
    value = tl.sum(tl.sum(q * excess, axis=1), axis=0)
    tl.store(values_ptr + tl.program_id(0), value * (share * temperature))
    tl.store(table_ptr + place, tl.where(seen, q * growth * share, 0.0), mask=in_map)
