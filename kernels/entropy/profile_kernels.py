"""The kernels of :mod:`.profile`: sums with the gradient's directions, weights, and slopes."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.tiles import of_map
from .kernel_math import compare_softmaxes, draw_four, floor_softmax, log_softmax, sum_in_lane


class Levels(NamedTuple):
    """Levels as an argument of the forward kernel: every field has an entry for each.

    Attributes:
        start: the level's first program; one entry more, behind the last.
        x_ptr: rows of the student, ``[M, B, C, w, h]``, contiguous within an image.
        x_step: their strides from modality to modality and from sample to sample.
        t_ptr: rows of the teacher.
        t_step: their strides.
        noise_ptr: ``[S, 2, M, B, C, h, w]``, if it is given.
        stream: number of the level, part of the key.
        C: channels.
        W: columns.
        H: rows, the softmax axis.
        elements_before: elements of an image of the levels before.
        places_before: positions of an image of the levels before.
        gammas_before: parts of the channels, times positions, of the levels before.
    """

    start: Any
    x_ptr: Any
    x_step: Any
    t_ptr: Any
    t_step: Any
    noise_ptr: Any
    stream: Any
    C: Any
    W: Any
    H: Any
    elements_before: Any
    places_before: Any
    gammas_before: Any


class Sums(NamedTuple):
    """Levels as an argument of the second kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the level's program.
        parts: sums of an image.
        parts_before: those of the levels before.
        rows: ``C S w``, softmaxes of an image.
        height: h.
        share: factor of the level.
    """

    start: Any
    parts: Any
    parts_before: Any
    rows: Any
    height: Any
    share: Any


class Slopes(NamedTuple):
    """Levels as an argument of the last kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program.
        level: its number in the launch.
        P: positions of an image.
        parts: parts of the channels.
        rows: ``C S``.
        places_before: positions of an image of the levels before.
        gammas_before: parts of the channels, times positions, of the levels before.
    """

    start: Any
    level: Any
    P: Any
    parts: Any
    rows: Any
    places_before: Any
    gammas_before: Any


@triton.jit
def _profile_level(
    levels, sigma_ptr, seed_ptr, directions_ptr, gammas_ptr, sums_ptr, S, B,
    LEVEL: tl.constexpr, GIVEN: tl.constexpr, DIRECTIONS: tl.constexpr,
    THROUGH_SIGMA: tl.constexpr, FAST: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, LANE: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """The part of a program, which belongs to one level."""
    C, W, H = levels.C[LEVEL], levels.W[LEVEL], levels.H[LEVEL]
    pid, pid_g = tl.program_id(0) - levels.start[LEVEL], tl.program_id(1)
    image, images = pid_g.to(tl.int64), tl.num_programs(1).to(tl.int64)
    columns = tl.cdiv(W, BLOCK_R)
    pid_w, pid_c = pid % columns, pid // columns
    offs_w, offs_h = pid_w * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    valid_h = (offs_h < H)[None, :]
    mask = (offs_w < W)[:, None] & valid_h
    place = offs_w[:, None] * H + offs_h[None, :]
    P = W * H
    x_step, t_step = levels.x_step[LEVEL], levels.t_step[LEVEL]
    x_ptr = levels.x_ptr[LEVEL] + ((image // B) * x_step[0] + (image % B) * x_step[1])
    t_ptr = levels.t_ptr[LEVEL] + ((image // B) * t_step[0] + (image % B) * t_step[1])
    directions_ptr += 2 * images * levels.elements_before[LEVEL] + image * C * P
    sigma_ptr += 2 * images * levels.places_before[LEVEL]
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
        rows = c * P + place
        x = tl.load(x_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        t = tl.load(t_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        index = c * P + offs_h[None, :] * W + offs_w[:, None]
        first = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
        second = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
        for call in range(tl.cdiv(S, 2)):
            if not GIVEN:
                n0, n1, n2, n3 = draw_four(seed, index, pid_g, call, levels.stream[LEVEL], FAST)
            for s in range(2 * call, tl.minimum(S, 2 * call + 2)):
                if GIVEN:
                    draws = levels.noise_ptr[LEVEL]
                    draws += (2 * tl.cast(s, tl.int64) * images + image) * C * P
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
        gammas = gammas_ptr + 2 * images * levels.gammas_before[LEVEL]
        gammas += (pid_c * images + image) * P + place
        tl.store(gammas, first_gamma, mask=mask)
        tl.store(gammas + tl.cdiv(C, CHANNELS) * images * P, second_gamma, mask=mask)
    parts = levels.start[LEVEL + 1] - levels.start[LEVEL]
    sums = sums_ptr + 3 * images * levels.start[LEVEL] + image * parts + pid
    inside = (offs_w < W)[:, None]
    tl.store(sums, tl.sum(tl.where(inside, divergence, 0.0)))
    tl.store(sums + images * parts, tl.sum(tl.where(inside, q_square, 0.0)))
    tl.store(sums + 2 * images * parts, tl.sum(tl.where(inside, d_square, 0.0)))


@triton.jit
def _profile_fwd_kernel(
    levels, sigma_ptr, seed_ptr, directions_ptr, gammas_ptr, sums_ptr, S, B,
    GIVEN: tl.constexpr, DIRECTIONS: tl.constexpr, THROUGH_SIGMA: tl.constexpr,
    FAST: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Divergence, squares and directions of some columns and channels of an image.

    What it reads and writes of all levels lies in a row.

    Args:
        levels: :class:`Levels`.
        sigma_ptr: ``[2, M, B, w, h]`` float32 of every level, noise scales of both sides.
        seed_ptr: one int64, the key of the noise.
        directions_ptr: ``[2, M, B, C, w, h]`` float32 of every level, written.
        gammas_ptr: ``[2, parts, M B, w h]`` float32 of every level, directions times noise over
            channels and samples, written.
        sums_ptr: ``[3, M B, programs]`` float32 of every level, written: the divergence, Q and G.
        S: noise samples.
        B: samples.
        GIVEN: read the noise instead of drawing it.
        DIRECTIONS: write the gradient's directions.
        THROUGH_SIGMA: the gradient goes through the noise scale, too.
        FAST: use the instructions of the special function unit.
        CHANNELS: channels of a program.
        TILES: of each level the columns of a tile, its members, which are all of them, how many
            neighbours share a lane, and whether the softmax axis is shorter than the tile.
    """
    pid = tl.program_id(0)
    # a body for each level: what is known of its tile and its strides is compiled in
    for i in tl.static_range(len(TILES)):
        if (pid >= levels.start[i]) & (pid < levels.start[i + 1]):
            _profile_level(
                levels, sigma_ptr, seed_ptr, directions_ptr, gammas_ptr, sums_ptr, S, B, i, GIVEN,
                DIRECTIONS, THROUGH_SIGMA, FAST, CHANNELS, TILES[i][0], TILES[i][1], TILES[i][2],
                TILES[i][3],
            )  # fmt: skip


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
    levels, sums_ptr, values_ptr, weights_ptr, B, NORMALISE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Value, alpha and beta of an image of a level.

    Args:
        levels: :class:`Sums`.
        sums_ptr: ``[3, M B, parts]`` float32 of every level in a row, of the forward kernel.
        values_ptr: ``[levels, M B]`` float64, written.
        weights_ptr: ``[levels, 2, M B]`` float32, alpha and beta, written.
        B: samples.
        NORMALISE: divide by ``N^2 h``.
        BLOCK_N: sums of a tile.
    """
    image, images = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    level = tl.program_id(1)
    at = Sums(*of_map(levels.start, levels, level))
    PARTS = at.parts
    sums_ptr += 3 * images * at.parts_before
    total = _total(sums_ptr + image * PARTS, PARTS, BLOCK_N)
    q_square = _total(sums_ptr + (images + image) * PARTS, PARTS, BLOCK_N)
    d_square = _total(sums_ptr + (2 * images + image) * PARTS, PARTS, BLOCK_N)
    rows, height = tl.cast(at.rows, tl.float64), at.height
    size = rows * height
    scale = (rows / height if NORMALISE else rows * size * size) / B * at.share
    root = tl.sqrt(1.0 / (q_square * q_square) + 1.0 / (d_square * d_square))
    tl.store(values_ptr + level * images + image, scale * total / size * root)
    beta = scale * 2.0 * total / size / (root * d_square * d_square * d_square)
    weights_ptr += 2 * level * images + image
    tl.store(weights_ptr, (scale * root / size).to(tl.float32))
    tl.store(weights_ptr + images, beta.to(tl.float32))


@triton.jit
def _profile_slope_kernel(
    levels, gammas_ptr, weights_ptr, sigma_ptr, slope_ptr, S, BLOCK_P: tl.constexpr
):
    """``S (alpha gamma_1 + beta gamma_2) / ((C S - 1) sigma)`` of each position of every level.

    Args:
        levels: :class:`Slopes`.
        gammas_ptr: ``[2, parts, M B, P]`` float32 of every level in a row, of the forward kernel.
        weights_ptr: ``[levels, 2, M B]`` float32, alpha and beta.
        sigma_ptr: ``[2, M B, P]`` float32 of every level in a row, noise scales; the student's.
        slope_ptr: ``[M B, P]`` float32 of every level in a row, written.
        S: noise samples.
        BLOCK_P: positions of a tile.
    """
    pid = tl.program_id(0)
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    at = Slopes(*of_map(levels.start, levels, pid))
    P, PARTS = at.P, at.parts
    offs_p = (pid - at.start) * BLOCK_P + tl.arange(0, BLOCK_P)
    first = tl.zeros((BLOCK_P,), dtype=tl.float32)
    second = tl.zeros((BLOCK_P,), dtype=tl.float32)
    ptrs = gammas_ptr + 2 * images * at.gammas_before + image * P + offs_p
    for _ in range(PARTS):
        first += tl.load(ptrs, mask=offs_p < P, other=0.0)
        second += tl.load(ptrs + PARTS * images * P, mask=offs_p < P, other=0.0)
        ptrs += images * P
    weights_ptr += 2 * at.level * images + image
    gamma = tl.load(weights_ptr) * first + tl.load(weights_ptr + images) * second
    before = images * at.places_before
    sigma = tl.load(sigma_ptr + 2 * before + image * P + offs_p, mask=offs_p < P, other=0.0)
    # where the channels agree nothing pulls them apart
    flat = sigma == 0.0
    slope = tl.where(flat, 0.0, gamma * S / (at.rows - 1) / tl.where(flat, 1.0, sigma))
    tl.store(slope_ptr + before + image * P + offs_p, slope, mask=offs_p < P)
