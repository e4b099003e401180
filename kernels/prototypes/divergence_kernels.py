"""The kernel of the prototype divergence: values and the gradient table in one launch."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.series import exp_terms
from ..common.tiles import of_map


class Levels(NamedTuple):
    """Prototypes of the levels; an entry of each field for each level.

    Attributes:
        start: the level's first program.
        level: its place in the counts.
        C: channels.
        student_first: first element of the student's prototypes.
        teacher_first: first element of the teacher's.
    """

    start: Any
    level: Any
    C: Any
    student_first: Any
    teacher_first: Any


# exp(-40) is below the rounding of float32 next to probabilities that add up to one
_LEAST_LOG = tl.constexpr(-40.0)


@triton.jit
def _log_softmax(x, takes_part, temperature):
    """Over axis 0, minus infinity where an entry takes no part; its two summands but the logit."""
    z = tl.where(takes_part, x / temperature, float("-inf"))
    top = tl.max(z, axis=0)
    z -= top[None, :]
    log_sum = tl.log(tl.sum(tl.exp(z), axis=0))
    return z - log_sum[None, :], top, log_sum


@triton.jit
def _prototype_divergence_fwd_kernel(
    levels, rows, student_ptr, teacher_ptr, counts_ptr, pairing_ptr, table_ptr, values_ptr,
    B, K, temperature,
    PAIRED: tl.constexpr, CLASS_AXIS: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Divergence of a tile of a student row from the teacher rows paired with it, and the gradient.

    Args:
        levels: :class:`Levels`.
        rows: the teacher row of each entry of the pairing.
        student_ptr: float32, ``[Ms, B, K, C]`` of every level in a row.
        teacher_ptr: float32, ``[Mt, B, K, C]`` likewise.
        counts_ptr: ``[levels, B, K]`` int64, pixels of each class.
        pairing_ptr: ``[B, len(rows)]`` integers, the student row of each entry.
        table_ptr: gradient of the student's prototypes, laid out like them, written.
        values_ptr: ``[programs]`` float32, each program's part of the value, written.
        B: samples.
        K: classes.
        temperature: t.
        PAIRED: read the pairing; else row i goes with row i.
        CLASS_AXIS: softmaxes over the classes of a channel, else over the channels of a class.
        MASKED: leave absent classes out of the softmaxes.
        BLOCK_A: entries of a tile along the softmax axis: all of them.
        BLOCK_G: softmaxes of a tile.
    """
    pid = tl.program_id(0)
    at = Levels(*of_map(levels.start, levels, pid))
    C = at.C
    size = K * C
    groups = C if CLASS_AXIS else K
    blocks = (groups + BLOCK_G - 1) // BLOCK_G
    block = (pid - at.start) % blocks
    rest = (pid - at.start) // blocks
    b = rest % B
    m = rest // B
    offs_a = tl.arange(0, BLOCK_A)
    offs_g = block * BLOCK_G + tl.arange(0, BLOCK_G)
    in_axis = offs_a < (K if CLASS_AXIS else C)
    if CLASS_AXIS:
        offs = offs_a[:, None] * C + offs_g[None, :]
    else:
        offs = offs_g[None, :] * C + offs_a[:, None]
    mask = in_axis[:, None] & (offs_g < groups)[None, :]
    if MASKED:
        counts = tl.load(counts_ptr + (at.level * B + b) * K + offs_a, mask=in_axis, other=0)
        present = (counts > 0) & in_axis
        # a sample without any class keeps its zero rows, which diverge by nothing
        takes_part = (present | (in_axis & (tl.max(present.to(tl.int32), axis=0) == 0)))[:, None]
    else:
        takes_part = in_axis[:, None]
    offs_s = at.student_first + (m * B + b).to(tl.int64) * size + offs
    x = tl.load(student_ptr + offs_s, mask=mask, other=0.0)
    log_p, top_p, sum_p = _log_softmax(x, takes_part, temperature)
    value = tl.zeros((BLOCK_A, BLOCK_G), dtype=tl.float32)
    grad = tl.zeros((BLOCK_A, BLOCK_G), dtype=tl.float32)
    for i in tl.static_range(len(rows)):
        # the rows that this one is paired with, in their order: nothing is added atomically
        paired_with = tl.load(pairing_ptr + b * len(rows) + i).to(tl.int32) if PAIRED else i
        if paired_with == m:
            offs_t = at.teacher_first + (rows[i] * B + b).to(tl.int64) * size + offs
            t = tl.load(teacher_ptr + offs_t, mask=mask, other=0.0)
            log_q, top_q, sum_q = _log_softmax(t, takes_part, temperature)
            floored = tl.maximum(log_q, _LEAST_LOG)
            q = tl.where(takes_part, tl.exp(floored), 0.0)
            # close logits have an exact difference, distant ones more exact logarithms
            apart = (x - t) / temperature
            close = (tl.abs(apart) < 1) & (log_q > _LEAST_LOG)
            shift = ((top_p - top_q) + (sum_p - sum_q))[None, :]
            ratio = tl.where(close, apart - shift, log_p - floored)
            ratio = tl.where(takes_part, ratio, 0.0)
            # p and q both add up to one: what is missing is the error of the logarithms
            growth, _ = exp_terms(ratio)
            ratio -= tl.where(takes_part, tl.sum(q * growth, axis=0)[None, :], 0.0)
            growth, excess = exp_terms(ratio)
            value += q * excess
            grad += q * growth
    share = temperature / (size.to(tl.float32) * B)
    value = tl.where(mask, value, 0.0)
    tl.store(values_ptr + pid, tl.sum(tl.sum(value, axis=1), axis=0) * (share * temperature))
    tl.store(table_ptr + offs_s, grad * share, mask=mask)
