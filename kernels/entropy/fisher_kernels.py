"""The kernels of :mod:`.fisher`: informations with the gradient's directions, and their weights."""

import triton
import triton.language as tl

from .kernel_math import compare_softmaxes, draw_four, exponential, floor_softmax, log_softmax

_GUARD = tl.constexpr(1e-12)  # as in the reference


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
def _fisher_fwd_kernel(
    x_ptr, t_ptr, sigma_x_ptr, sigma_t_ptr, noise_ptr, seed_ptr, directions_ptr, sums_ptr,
    stream, S, B, R, INNER, D, outer_step, member_step,
    sx_m, sx_b, sx_o, sx_f, sx_d, st_m, st_b, st_o, st_f, st_d,
    GIVEN: tl.constexpr, TAIL: tl.constexpr, DIRECTIONS: tl.constexpr, FAST: tl.constexpr,
    TILES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Informations of both sides over some softmax groups, and the gradient's directions.

    Args:
        x_ptr: the student, ``[M, B, outer, inner, length]``, contiguous.
        t_ptr: the teacher likewise.
        sigma_x_ptr: noise scales of the student, with the strides ``sx``.
        sigma_t_ptr: noise scales of the teacher, with the strides ``st``.
        noise_ptr: ``[S, M, B, C, h, w]``, if it is given.
        seed_ptr: one int64, the key of the noise.
        directions_ptr: ``[2, M, B, outer, inner, length]`` float32, written.
        sums_ptr: ``[2, M, B, programs]`` float32, written.
        stream: number of the level, part of the key.
        S: noise samples.
        B: samples.
        R: softmax groups of an image.
        INNER: groups along the inner axis.
        D: members of a group.
        outer_step: distance of neighbours along the outer axis in a contiguous ``[C, h, w]``.
        member_step: distance of members of a group in it.
        sx_m: stride of the student's scales from modality to modality.
        sx_b: from sample to sample.
        sx_o: along the outer axis.
        sx_f: along the inner axis.
        sx_d: along the members.
        st_m: stride of the teacher's scales from modality to modality.
        st_b: from sample to sample.
        st_o: along the outer axis.
        st_f: along the inner axis.
        st_d: along the members.
        GIVEN: read the noise instead of drawing it.
        TAIL: the softmax axis is shorter than the tile.
        DIRECTIONS: write the gradient's directions.
        FAST: use the instructions of the special function unit.
        TILES: tiles of a program.
        BLOCK_R: softmaxes of a tile.
        BLOCK_D: members of a tile: all of them.
    """
    pid, pid_g = tl.program_id(0), tl.program_id(1)
    images, image = tl.num_programs(1), pid_g.to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    valid_d = (offs_d < D)[None, :]
    sigma_x_ptr += (image // B) * sx_m + (image % B) * sx_b + offs_d[None, :] * sx_d
    sigma_t_ptr += (image // B) * st_m + (image % B) * st_b + offs_d[None, :] * st_d
    of_student = tl.zeros((BLOCK_R,), dtype=tl.float32)
    of_teacher = tl.zeros((BLOCK_R,), dtype=tl.float32)
    if not GIVEN:
        seed = tl.load(seed_ptr)
    for tile in range(pid * TILES, tl.minimum(tl.cdiv(R, BLOCK_R), pid * TILES + TILES)):
        offs_r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (offs_r < R)[:, None] & valid_d
        rows = image * (R * D) + offs_r[:, None] * D + offs_d[None, :]
        outer, inner = offs_r // INNER, offs_r % INNER
        index = (outer * outer_step + inner)[:, None] + offs_d[None, :] * member_step
        x = tl.load(x_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(t_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        offs_s = outer[:, None] * sx_o + inner[:, None] * sx_f
        sigma_x = tl.load(sigma_x_ptr + offs_s, mask=mask, other=0.0).to(tl.float32)
        offs_s = outer[:, None] * st_o + inner[:, None] * st_f
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
                n0, n1, n2, n3 = draw_four(seed, index, pid_g, call, stream, FAST)
            for s in range(4 * call, tl.minimum(S, 4 * call + 4)):
                if GIVEN:
                    draws = noise_ptr + (tl.cast(s, tl.int64) * images + image) * (R * D)
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
            directions = directions_ptr + rows
            tl.store(directions, first, mask=mask)
            tl.store(directions + images.to(tl.int64) * (R * D), second, mask=mask)
    sums = sums_ptr + image * tl.num_programs(0) + pid
    tl.store(sums, tl.sum(of_student, 0))
    tl.store(sums + images.to(tl.int64) * tl.num_programs(0), tl.sum(of_teacher, 0))


@triton.jit
def _fisher_finish_kernel(
    sums_ptr, spread_ptr, value_ptr, weights_ptr, PARTS, SPREADS, SIDES, length, divisor,
    NORMALISE: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """R and the weights of the directions; one program, the sums in a fixed order.

    Args:
        sums_ptr: ``[SIDES, PARTS]`` float32, of the forward kernel.
        spread_ptr: ``[SIDES, SPREADS]`` float32, noise scales.
        value_ptr: one float32, R, written.
        weights_ptr: ``[SIDES]`` float32, written.
        PARTS: sums of a side.
        SPREADS: scales of a side.
        SIDES: twice the number of modalities.
        length: members of a softmax group.
        divisor: what a side's sum is divided by: samples times groups.
        NORMALISE: divide each information by ``2 mean(sigma^2) / length``.
        BLOCK_J: sides of a tile: all of them.
        BLOCK_N: parts of a tile.
    """
    offs_j, offs_n = tl.arange(0, BLOCK_J), tl.arange(0, BLOCK_N)
    valid = offs_j < SIDES
    total = tl.zeros((BLOCK_J, BLOCK_N), dtype=tl.float64)
    for start in range(0, PARTS, BLOCK_N):
        mask = valid[:, None] & (start + offs_n < PARTS)[None, :]
        ptrs = sums_ptr + offs_j[:, None].to(tl.int64) * PARTS + start + offs_n[None, :]
        total += tl.load(ptrs, mask=mask, other=0.0).to(tl.float64)
    divisor = tl.cast(divisor, tl.float64)
    information = tl.sum(total, 1) / divisor
    unit = tl.full((BLOCK_J,), 1.0, dtype=tl.float64)
    if NORMALISE:
        square = tl.zeros((BLOCK_J, BLOCK_N), dtype=tl.float64)
        for start in range(0, SPREADS, BLOCK_N):
            mask = valid[:, None] & (start + offs_n < SPREADS)[None, :]
            ptrs = spread_ptr + offs_j[:, None] * SPREADS + start + offs_n[None, :]
            spread = tl.load(ptrs, mask=mask, other=0.0).to(tl.float64)
            square += spread * spread
        unit = tl.sum(square, 1) * 2.0 / (tl.cast(length, tl.float64) * SPREADS)
    # NaN is not zero: it stays and is seen
    counts = valid & (information != 0.0)
    inverse = tl.where(counts, unit / tl.where(counts, information, 1.0), 0.0)
    value = tl.sqrt(tl.sum(inverse * inverse, 0))
    counts &= inverse != 0.0
    weight = -inverse * inverse * inverse / tl.where(counts, value * unit * divisor, 1.0)
    tl.store(value_ptr, value.to(tl.float32))
    tl.store(weights_ptr + offs_j, tl.where(counts, weight, 0.0).to(tl.float32), mask=valid)
