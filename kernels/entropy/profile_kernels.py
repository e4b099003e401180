"""The kernels of :mod:`.profile`: sums with the gradient's directions, weights, and slopes."""

import triton
import triton.language as tl

from .kernel_math import compare_softmaxes, draw_four, floor_softmax, log_softmax, sum_in_lane


@triton.jit
def _profile_fwd_kernel(
    x_ptr, t_ptr, sigma_ptr, noise_ptr, seed_ptr, directions_ptr, gammas_ptr, sums_ptr,
    stream, S, C, W, H,
    GIVEN: tl.constexpr, TAIL: tl.constexpr, DIRECTIONS: tl.constexpr,
    THROUGH_SIGMA: tl.constexpr, FAST: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, LANE: tl.constexpr,
):  # fmt: skip
    """Divergence, squares and directions of some columns and channels of an image.

    Args:
        x_ptr: the student, ``[M, B, C, w, h]``, contiguous.
        t_ptr: the teacher likewise.
        sigma_ptr: ``[2, M, B, w, h]`` float32, noise scales of both.
        noise_ptr: ``[S, 2, M, B, C, h, w]``, if it is given.
        seed_ptr: one int64, the key of the noise.
        directions_ptr: ``[2, M, B, C, w, h]`` float32, written.
        gammas_ptr: ``[2, parts, M B, w h]`` float32, directions times noise over channels and
            samples, written.
        sums_ptr: ``[3, M B, programs]`` float32, written: the divergence, Q and G.
        stream: number of the level, part of the key.
        S: noise samples.
        C: channels.
        W: columns.
        H: rows, the softmax axis.
        GIVEN: read the noise instead of drawing it.
        TAIL: the softmax axis is shorter than the tile.
        DIRECTIONS: write the gradient's directions.
        THROUGH_SIGMA: the gradient goes through the noise scale, too.
        FAST: use the instructions of the special function unit.
        CHANNELS: channels of a program.
        BLOCK_R: columns of a tile.
        BLOCK_D: members of a tile: all of them.
        LANE: neighbours that share a lane.
    """
    pid_w, pid_c, pid_g = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    image, images = pid_g.to(tl.int64), tl.num_programs(2).to(tl.int64)
    offs_w, offs_h = pid_w * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    valid_h = (offs_h < H)[None, :]
    mask = (offs_w < W)[:, None] & valid_h
    place = offs_w[:, None] * H + offs_h[None, :]
    P = W * H
    sigma_x = tl.load(sigma_ptr + image * P + place, mask=mask, other=0.0)
    sigma_t = tl.load(sigma_ptr + (images + image) * P + place, mask=mask, other=0.0)
    if not GIVEN:
        seed = tl.load(seed_ptr)
    first_gamma = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
    second_gamma = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
    divergence = tl.zeros((BLOCK_R, BLOCK_D // LANE), dtype=tl.float32)
    q_square = tl.zeros((BLOCK_R, BLOCK_D // LANE), dtype=tl.float32)
    d_square = tl.zeros((BLOCK_R, BLOCK_D // LANE), dtype=tl.float32)
    for c in range(pid_c * CHANNELS, tl.minimum(C, pid_c * CHANNELS + CHANNELS)):
        rows = (image * C + c) * P + place
        x = tl.load(x_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(t_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        index = c * P + offs_h[None, :] * W + offs_w[:, None]
        first = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
        second = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
        for call in range(tl.cdiv(S, 2)):
            if not GIVEN:
                n0, n1, n2, n3 = draw_four(seed, index, pid_g, call, stream, FAST)
            for s in range(2 * call, tl.minimum(S, 2 * call + 2)):
                if GIVEN:
                    draws = noise_ptr + (2 * tl.cast(s, tl.int64) * images + image) * C * P
                    e = tl.load(draws + index, mask=mask, other=0.0).to(tl.float32)
                    draws += images * C * P
                    other = tl.load(draws + index, mask=mask, other=0.0).to(tl.float32)
                else:
                    e, other = tl.where(s % 2 == 0, n0, n2), tl.where(s % 2 == 0, n1, n3)
                log_p, p = log_softmax(x + sigma_x * e, valid_h, TAIL, FAST)
                log_q, q = log_softmax(t + sigma_t * other, valid_h, TAIL, FAST)
                d = log_q - log_p + 1.0
                if TAIL:
                    d = tl.where(valid_h, d, 0.0)
                log_q, q = floor_softmax(log_q, q)
                _, step, excess = compare_softmaxes(log_p, p, log_q, q)
                divergence += sum_in_lane(excess, BLOCK_R, BLOCK_D, LANE)
                q_square += sum_in_lane(q * q, BLOCK_R, BLOCK_D, LANE)
                d_square += sum_in_lane(d * d, BLOCK_R, BLOCK_D, LANE)
                first += step
                if THROUGH_SIGMA:
                    first_gamma += step * e
                step = d - p * tl.sum(d, 1)[:, None]
                second += step
                if THROUGH_SIGMA:
                    second_gamma += step * e
        if DIRECTIONS:
            tl.store(directions_ptr + rows, first, mask=mask)
            tl.store(directions_ptr + images * C * P + rows, second, mask=mask)
    if THROUGH_SIGMA:
        gammas = gammas_ptr + (pid_c * images + image) * P + place
        tl.store(gammas, first_gamma, mask=mask)
        tl.store(gammas + tl.num_programs(1) * images * P, second_gamma, mask=mask)
    parts = tl.num_programs(1) * tl.num_programs(0)
    sums = sums_ptr + image * parts + pid_c * tl.num_programs(0) + pid_w
    inside = (offs_w < W)[:, None]
    tl.store(sums, tl.sum(tl.where(inside, divergence, 0.0)))
    tl.store(sums + images * parts, tl.sum(tl.where(inside, q_square, 0.0)))
    tl.store(sums + 2 * images * parts, tl.sum(tl.where(inside, d_square, 0.0)))


@triton.jit
def _total(ptr, PARTS, BLOCK_N: tl.constexpr):
    """Sum in float64, in a fixed order."""
    offs_n = tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for start in range(0, PARTS, BLOCK_N):
        total += tl.load(ptr + start + offs_n, mask=start + offs_n < PARTS, other=0.0).to(
            tl.float64
        )
    return tl.sum(total, 0)


@triton.jit
def _profile_finish_kernel(
    sums_ptr, values_ptr, weights_ptr, PARTS, rows, height, B,
    NORMALISE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Value, alpha and beta of an image.

    Args:
        sums_ptr: ``[3, M B, PARTS]`` float32, of the forward kernel.
        values_ptr: ``[M B]`` float64, written.
        weights_ptr: ``[2, M B]`` float32, alpha and beta, written.
        PARTS: sums of an image.
        rows: ``C S w``, softmaxes of an image.
        height: h.
        B: samples.
        NORMALISE: divide by ``N^2 h``.
        BLOCK_N: sums of a tile.
    """
    image, images = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    total = _total(sums_ptr + image * PARTS, PARTS, BLOCK_N)
    q_square = _total(sums_ptr + (images + image) * PARTS, PARTS, BLOCK_N)
    d_square = _total(sums_ptr + (2 * images + image) * PARTS, PARTS, BLOCK_N)
    rows = tl.cast(rows, tl.float64)
    size = rows * height
    scale = (rows / height if NORMALISE else rows * size * size) / B
    root = tl.sqrt(1.0 / (q_square * q_square) + 1.0 / (d_square * d_square))
    tl.store(values_ptr + image, scale * total / size * root)
    beta = scale * 2.0 * total / size / (root * d_square * d_square * d_square)
    tl.store(weights_ptr + image, (scale * root / size).to(tl.float32))
    tl.store(weights_ptr + images + image, beta.to(tl.float32))


@triton.jit
def _profile_slope_kernel(
    gammas_ptr, weights_ptr, sigma_ptr, slope_ptr, PARTS, P, S, rows, BLOCK_P: tl.constexpr
):
    """``S (alpha gamma_1 + beta gamma_2) / ((C S - 1) sigma)`` of each position.

    Args:
        gammas_ptr: ``[2, PARTS, M B, P]`` float32, of the forward kernel.
        weights_ptr: ``[2, M B]`` float32, alpha and beta.
        sigma_ptr: ``[M B, P]`` float32, noise scales of the student.
        slope_ptr: ``[M B, P]`` float32, written.
        PARTS: parts of the channels.
        P: positions of an image.
        S: noise samples.
        rows: ``C S``.
        BLOCK_P: positions of a tile.
    """
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    offs_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    first = tl.zeros((BLOCK_P,), dtype=tl.float32)
    second = tl.zeros((BLOCK_P,), dtype=tl.float32)
    ptrs = gammas_ptr + image * P + offs_p
    for _ in range(PARTS):
        first += tl.load(ptrs, mask=offs_p < P, other=0.0)
        second += tl.load(ptrs + PARTS * images * P, mask=offs_p < P, other=0.0)
        ptrs += images * P
    gamma = tl.load(weights_ptr + image) * first + tl.load(weights_ptr + images + image) * second
    sigma = tl.load(sigma_ptr + image * P + offs_p, mask=offs_p < P, other=0.0)
    # where the channels agree nothing pulls them apart
    flat = sigma == 0.0
    slope = tl.where(flat, 0.0, gamma * S / (rows - 1) / tl.where(flat, 1.0, sigma))
    tl.store(slope_ptr + image * P + offs_p, slope, mask=offs_p < P)
