"""The kernels of :mod:`.fisher`: informations with the gradient's directions, and their weights."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.tiles import of_map
from .kernel_math import compare_softmaxes, draw_four, exponential, floor_softmax, log_softmax

_GUARD = tl.constexpr(1e-12)  # as in the reference


class Levels(NamedTuple):
    """Levels as an argument of the forward kernel: every field has an entry for each.

    Attributes:
        start: the level's first program; one entry more, behind the last.
        x_ptr: rows of the student, the members of a softmax group next to each other.
        x_step: their strides from modality to modality, sample to sample and group to group.
        t_ptr: rows of the teacher.
        t_step: their strides.
        sigma_x_ptr: noise scales of the student.
        sigma_x_step: their strides: modality, sample, outer and inner axis, members.
        sigma_t_ptr: noise scales of the teacher.
        sigma_t_step: their strides.
        noise_ptr: ``[S, M, B, C, h, w]``, if it is given.
        stream: number of the level, part of the key.
        R: softmax groups of an image.
        INNER: groups along the inner axis.
        D: members of a group.
        outer_step: distance of neighbours along the outer axis in a contiguous ``[C, h, w]``.
        member_step: distance of members of a group in it.
        elements_before: elements of an image of the levels before.
    """

    start: Any
    x_ptr: Any
    x_step: Any
    t_ptr: Any
    t_step: Any
    sigma_x_ptr: Any
    sigma_x_step: Any
    sigma_t_ptr: Any
    sigma_t_step: Any
    noise_ptr: Any
    stream: Any
    R: Any
    INNER: Any
    D: Any
    outer_step: Any
    member_step: Any
    elements_before: Any


class Sums(NamedTuple):
    """Levels as an argument of the last kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the level's program.
        programs: of the forward kernel, for an image.
        programs_before: those of the levels before.
        spreads: noise scales of a side.
        spreads_before: those of the levels before.
        length: members of a softmax group.
        divisor: what a side's sum is divided by: samples times groups.
    """

    start: Any
    programs: Any
    programs_before: Any
    spreads: Any
    spreads_before: Any
    length: Any
    divisor: Any


@triton.jit
def _student_side(z, log_q, sigma, mask, TAIL: tl.constexpr, FAST: tl.constexpr):
    """Information of each group with the student at z, and its gradient."""
    log_p, p = log_softmax(z, mask, TAIL, FAST)
    q = exponential(log_q, FAST)
    if TAIL:
        q = tl.where(mask, q, 0.0)
    _, g, excess = compare_softmaxes(log_p, p, log_q, q)
    f = tl.sum(excess, 1) + _GUARD
    v = sigma * (sigma * g)
    information = tl.sum(v * g, 1) / f
    v = 2.0 * p * (v - tl.sum(p * v, 1)[:, None]) - g * information[:, None]
    return information, v * (1.0 / f)[:, None]


@triton.jit
def _teacher_side(u, log_p, sigma, mask, TAIL: tl.constexpr, FAST: tl.constexpr):
    """Information of each group with the teacher at u, and its gradient for the student."""
    log_q, q = log_softmax(u, mask, TAIL, FAST)
    log_q, q = floor_softmax(log_q, q)
    # in place of the clean p, which would take a register for each element
    p = q * exponential(log_p - log_q, FAST)
    ratio, h, excess = compare_softmaxes(log_p, p, log_q, q)
    f = tl.sum(excess, 1)
    slope = q * (ratio + f[:, None])
    f += _GUARD
    w = sigma * (sigma * slope)
    information = tl.sum(w * slope, 1) / f
    w *= q
    w = 2.0 * (w - q * tl.sum(w, 1)[:, None]) - h * information[:, None]
    return information, w * (1.0 / f)[:, None]


@triton.jit
def _fisher_level(
    levels, seed_ptr, directions_ptr, sums_ptr, S, B,
    LEVEL: tl.constexpr, GIVEN: tl.constexpr, DIRECTIONS: tl.constexpr, FAST: tl.constexpr,
    LOOPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """The part of a program, which belongs to one level."""
    pid, pid_g = tl.program_id(0) - levels.start[LEVEL], tl.program_id(1)
    programs = levels.start[LEVEL + 1] - levels.start[LEVEL]
    images, image = tl.num_programs(1).to(tl.int64), pid_g.to(tl.int64)
    R, INNER, D = levels.R[LEVEL], levels.INNER[LEVEL], levels.D[LEVEL]
    x_step, t_step = levels.x_step[LEVEL], levels.t_step[LEVEL]
    sx, st = levels.sigma_x_step[LEVEL], levels.sigma_t_step[LEVEL]
    m, b = image // B, image % B
    offs_d = tl.arange(0, BLOCK_D)
    valid_d = (offs_d < D)[None, :]
    x_ptr = levels.x_ptr[LEVEL] + (m * x_step[0] + b * x_step[1])
    t_ptr = levels.t_ptr[LEVEL] + (m * t_step[0] + b * t_step[1])
    sigma_x_ptr = levels.sigma_x_ptr[LEVEL] + m * sx[0] + b * sx[1] + offs_d[None, :] * sx[4]
    sigma_t_ptr = levels.sigma_t_ptr[LEVEL] + m * st[0] + b * st[1] + offs_d[None, :] * st[4]
    directions_ptr += 2 * images * levels.elements_before[LEVEL] + image * (R * D)
    of_student = tl.zeros((BLOCK_R,), dtype=tl.float32)
    of_teacher = tl.zeros((BLOCK_R,), dtype=tl.float32)
    if not GIVEN:
        seed = tl.load(seed_ptr)
    for tile in range(pid * LOOPS, tl.minimum(tl.cdiv(R, BLOCK_R), pid * LOOPS + LOOPS)):
        offs_r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (offs_r < R)[:, None] & valid_d
        outer, inner = offs_r // INNER, offs_r % INNER
        index = (outer * levels.outer_step[LEVEL] + inner)[:, None]
        index += offs_d[None, :] * levels.member_step[LEVEL]
        rows = offs_r[:, None] * x_step[2] + offs_d[None, :]
        x = tl.load(x_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        rows = offs_r[:, None] * t_step[2] + offs_d[None, :]
        t = tl.load(t_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        offs_s = outer[:, None] * sx[2] + inner[:, None] * sx[3]
        sigma_x = tl.load(sigma_x_ptr + offs_s, mask=mask, other=0.0).to(tl.float32)
        offs_s = outer[:, None] * st[2] + inner[:, None] * st[3]
        sigma_t = tl.load(sigma_t_ptr + offs_s, mask=mask, other=0.0).to(tl.float32)
        log_p, _ = log_softmax(x, valid_d, TAIL, FAST)
        log_q, q = log_softmax(t, valid_d, TAIL, FAST)
        log_q, _ = floor_softmax(log_q, q)
        first = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
        second = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
        student_sum = tl.zeros((BLOCK_R,), dtype=tl.float32)
        teacher_sum = tl.zeros((BLOCK_R,), dtype=tl.float32)
        for call in range(tl.cdiv(S, 4)):
            if not GIVEN:
                n0, n1, n2, n3 = draw_four(seed, index, pid_g, call, levels.stream[LEVEL], FAST)
            for s in range(4 * call, tl.minimum(S, 4 * call + 4)):
                if GIVEN:
                    draws = levels.noise_ptr[LEVEL]
                    draws += (tl.cast(s, tl.int64) * images + image) * (R * D)
                    e = tl.load(draws + index, mask=mask, other=0.0).to(tl.float32)
                else:
                    low, high = tl.where(s % 4 == 0, n0, n1), tl.where(s % 4 == 2, n2, n3)
                    e = tl.where(s % 4 < 2, low, high)
                information, slope = _student_side(
                    x + sigma_x * e, log_q, sigma_x, valid_d, TAIL, FAST
                )
                student_sum += information
                first += slope
                information, slope = _teacher_side(
                    t + sigma_t * e, log_p, sigma_t, valid_d, TAIL, FAST
                )
                teacher_sum += information
                second += slope
        of_student += tl.where(offs_r < R, student_sum, 0.0)
        of_teacher += tl.where(offs_r < R, teacher_sum, 0.0)
        if DIRECTIONS:
            directions = directions_ptr + (offs_r[:, None] * D + offs_d[None, :])
            tl.store(directions, first, mask=mask)
            tl.store(directions + images * (R * D), second, mask=mask)
    sums = sums_ptr + 2 * images * levels.start[LEVEL] + image * programs + pid
    tl.store(sums, tl.sum(of_student, 0))
    tl.store(sums + images * programs, tl.sum(of_teacher, 0))


@triton.jit
def _fisher_fwd_kernel(
    levels, seed_ptr, directions_ptr, sums_ptr, S, B,
    GIVEN: tl.constexpr, DIRECTIONS: tl.constexpr, FAST: tl.constexpr, LOOPS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Informations of both sides over some softmax groups, and the gradient's directions.

    Args:
        levels: :class:`Levels`.
        seed_ptr: one int64, the key of the noise.
        directions_ptr: float32, ``[2, M, B, outer, inner, length]`` of every level in a row,
            written.
        sums_ptr: float32, ``[2, M, B, programs]`` of every level in a row, written.
        S: noise samples.
        B: samples.
        GIVEN: read the noise instead of drawing it.
        DIRECTIONS: write the gradient's directions.
        FAST: use the instructions of the special function unit.
        LOOPS: tiles of a program.
        TILES: of each level the softmaxes of a tile, its members, which are all of them, and
            whether the softmax axis is shorter.
    """
    pid = tl.program_id(0)
    # a body for each level: what is known of its tile and its strides is compiled in
    for i in tl.static_range(len(TILES)):
        if (pid >= levels.start[i]) & (pid < levels.start[i + 1]):
            _fisher_level(
                levels, seed_ptr, directions_ptr, sums_ptr, S, B, i, GIVEN, DIRECTIONS, FAST,
                LOOPS, TILES[i][0], TILES[i][1], TILES[i][2],
            )  # fmt: skip


@triton.jit
def _fisher_finish_kernel(
    levels, sums_ptr, spread_ptr, values_ptr, weights_ptr, SIDES, B,
    NORMALISE: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """R and the weights of the directions of a level, the sums in a fixed order.

    Args:
        levels: :class:`Sums`.
        sums_ptr: float32, ``[SIDES, B, programs]`` of every level in a row, of the forward kernel.
        spread_ptr: float32, noise scales, ``[SIDES, spreads]`` of every level in a row.
        values_ptr: ``[levels]`` float32, R, written.
        weights_ptr: ``[levels, SIDES]`` float32, written.
        SIDES: twice the number of modalities.
        B: samples.
        NORMALISE: divide each information by ``2 mean(sigma^2) / length``.
        BLOCK_J: sides of a tile: all of them.
        BLOCK_N: parts of a tile.
    """
    pid = tl.program_id(0)
    at = Sums(*of_map(levels.start, levels, pid))
    PARTS, SPREADS = at.programs * B, at.spreads
    sums_ptr += tl.cast(SIDES, tl.int64) * B * at.programs_before
    spread_ptr += SIDES * at.spreads_before
    offs_j, offs_n = tl.arange(0, BLOCK_J), tl.arange(0, BLOCK_N)
    valid = offs_j < SIDES
    total = tl.zeros((BLOCK_J, BLOCK_N), dtype=tl.float64)
    for start in range(0, PARTS, BLOCK_N):
        mask = valid[:, None] & (start + offs_n < PARTS)[None, :]
        ptrs = sums_ptr + offs_j[:, None].to(tl.int64) * PARTS + start + offs_n[None, :]
        total += tl.load(ptrs, mask=mask, other=0.0).to(tl.float64)
    divisor = tl.cast(at.divisor, tl.float64)
    information = tl.sum(total, 1) / divisor
    unit = tl.full((BLOCK_J,), 1.0, dtype=tl.float64)
    if NORMALISE:
        square = tl.zeros((BLOCK_J, BLOCK_N), dtype=tl.float64)
        for start in range(0, SPREADS, BLOCK_N):
            mask = valid[:, None] & (start + offs_n < SPREADS)[None, :]
            ptrs = spread_ptr + offs_j[:, None] * SPREADS + start + offs_n[None, :]
            spread = tl.load(ptrs, mask=mask, other=0.0).to(tl.float64)
            square += spread * spread
        unit = tl.sum(square, 1) * 2.0 / (tl.cast(at.length, tl.float64) * SPREADS)
    # NaN is not zero: it stays and is seen
    counts = valid & (information != 0.0)
    inverse = tl.where(counts, unit / tl.where(counts, information, 1.0), 0.0)
    value = tl.sqrt(tl.sum(inverse * inverse, 0))
    counts &= inverse != 0.0
    weight = -inverse * inverse * inverse / tl.where(counts, value * unit * divisor, 1.0)
    tl.store(values_ptr + pid, value.to(tl.float32))
    weights_ptr += pid * SIDES + offs_j
    tl.store(weights_ptr, tl.where(counts, weight, 0.0).to(tl.float32), mask=valid)
