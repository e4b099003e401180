"""The kernels of mean fusion: the means of all levels, and the sum of all gradients of each level.

Features are contiguous ``[M, B, h, w, C]``; inside an image all maps have the same order, so a
program owns some elements of an image, whatever axes they are on, and reads each input once.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.rounding import rounded_to


class Levels(NamedTuple):
    """Levels as an argument of a kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program; one entry more, behind the last.
        size: elements of an image.
        x_ptr: the features.
        out_ptr: their means ``[P, B, h, w, C]``, written.
    """

    start: Any
    size: Any
    x_ptr: Any
    out_ptr: Any


class Gradients(NamedTuple):
    """Levels of which gradients are added; every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program; one entry more, behind the last.
        size: elements of an image.
        mean_ptr: gradient of the means, if there is one.
        branch_ptr: gradients of the features from their other users, a tuple.
        out_ptr: the sum, written.
    """

    start: Any
    size: Any
    mean_ptr: Any
    branch_ptr: Any
    out_ptr: Any


@triton.jit
def _marked(marks_ptr, p, m, b, B, M: tl.constexpr):
    """Whether a fusion has a modality of a sample."""
    return tl.load(marks_ptr + (p * M + m) * B + b).to(tl.int32) != 0


@triton.jit
def _share(marks_ptr, p, b, B, M: tl.constexpr):
    """One over the number of modalities of a fusion of a sample."""
    count = 0.0
    for m in tl.static_range(M):
        count += tl.where(_marked(marks_ptr, p, m, b, B, M), 1.0, 0.0)
    return 1.0 / count


@triton.jit
def _mean_of_level(
    x_ptr, out_ptr, marks_ptr, block, size, B,
    M: tl.constexpr, MARKED: tl.constexpr, UP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    p, b = row // B, row % B
    offs = block * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for m in tl.static_range(M):
        there = mask
        if MARKED:
            # what is not marked is not read
            there = mask & _marked(marks_ptr, p, m, b, B, M)
        image = (m * B + b).to(tl.int64)
        total += tl.load(x_ptr + image * size + offs, mask=there, other=0.0).to(tl.float32)
    total *= _share(marks_ptr, p, b, B, M) if MARKED else 1.0 / M
    out = rounded_to(total, out_ptr.dtype.element_ty, UP)
    tl.store(out_ptr + row.to(tl.int64) * size + offs, out, mask=mask)


@triton.jit
def _mean_fusion_fwd_kernel(
    levels, marks_ptr, B,
    M: tl.constexpr, MARKED: tl.constexpr, UP: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Means over the modalities of some elements of a sample.

    Args:
        levels: :class:`Levels`.
        marks_ptr: ``[P, M, B]``, 1 or 0, if there are marks.
        B: samples.
        M: modalities.
        MARKED: there are marks.
        UP: round to bfloat16 by hand, as the interpreter does not.
        BLOCKS: elements of a tile of each level.
    """
    pid = tl.program_id(0)
    # a body for each level: what is known of its alignment is compiled in
    for i in tl.static_range(len(BLOCKS)):
        if (pid >= levels.start[i]) & (pid < levels.start[i + 1]):
            _mean_of_level(
                levels.x_ptr[i], levels.out_ptr[i], marks_ptr, pid - levels.start[i],
                levels.size[i], B, M, MARKED, UP, BLOCKS[i],
            )  # fmt: skip


@triton.jit
def _sum_of_level(
    mean_ptr, branch_ptr, out_ptr, marks_ptr, block, size, P, B,
    M: tl.constexpr, MARKED: tl.constexpr, MEAN: tl.constexpr, BRANCHES: tl.constexpr,
    UP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    of_mean = tl.zeros((BLOCK,), dtype=tl.float32)
    if MEAN and not MARKED:
        place = b.to(tl.int64) * size + offs
        of_mean = tl.load(mean_ptr + place, mask=mask, other=0.0).to(tl.float32) * (1.0 / M)
    for m in tl.static_range(M):
        total = of_mean
        if MEAN and MARKED:
            for p in range(P):
                place = (p * B + b).to(tl.int64) * size + offs
                there = mask & _marked(marks_ptr, p, m, b, B, M)
                x = tl.load(mean_ptr + place, mask=there, other=0.0).to(tl.float32)
                total += x * _share(marks_ptr, p, b, B, M)
        place = (m * B + b).to(tl.int64) * size + offs
        for n in tl.static_range(BRANCHES):
            total += tl.load(branch_ptr[n] + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + place, rounded_to(total, out_ptr.dtype.element_ty, UP), mask=mask)


@triton.jit
def _mean_fusion_bwd_kernel(
    levels, marks_ptr, P, B,
    M: tl.constexpr, MARKED: tl.constexpr, MEANS: tl.constexpr, BRANCHES: tl.constexpr,
    UP: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradients of the features at some elements of a sample, of the means and all branches.

    Args:
        levels: :class:`Gradients`.
        marks_ptr: ``[P, M, B]``, 1 or 0, if there are marks.
        P: fusions.
        B: samples.
        M: modalities.
        MARKED: there are marks.
        MEANS: for each level, whether its means have a gradient.
        BRANCHES: for each level, how many branches have one.
        UP: round to bfloat16 by hand, as the interpreter does not.
        BLOCKS: elements of a tile of each level.
    """
    pid = tl.program_id(0)
    for i in tl.static_range(len(BLOCKS)):
        if (pid >= levels.start[i]) & (pid < levels.start[i + 1]):
            _sum_of_level(
                levels.mean_ptr[i], levels.branch_ptr[i], levels.out_ptr[i], marks_ptr,
                pid - levels.start[i], levels.size[i], P, B, M, MARKED, MEANS[i], BRANCHES[i], UP,
                BLOCKS[i],
            )  # fmt: skip
