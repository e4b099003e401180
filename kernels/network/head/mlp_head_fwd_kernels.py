"""The kernels of the head's forward pass: the fused map with its statistics, and the logits.

The map before the BatchNorm is ``x = sum_i up(y_i) + W f`` with the projected levels ``y_i`` and
the first level ``f [C, pixels]``, which is multiplied where it is added. Each program sums a chunk
of pixels around its first value; a second launch combines the chunks in a fixed order, and the
statistics of processes likewise. The logits are one more pass over x, in which what is normalised
stays in registers.
"""

import triton
import triton.language as tl

from ...common.rounding import rounded_to
from .mlp_head_tiles import factor_of, load_as, load_norm
from .upsampling_kernels import sum_of_levels


@triton.jit
def first_product(first_ptr, weight, line, column, in_x, W, C, total,
                  BLOCK_C: tl.constexpr, DOT: tl.constexpr, UP: tl.constexpr):  # fmt: skip
    """``total`` plus the product of the first level at columns of a row with ``[C, E]``."""
    offs_c = tl.arange(0, BLOCK_C)
    f_ptrs = first_ptr + line.to(tl.int64) * W * C + ((column * C)[:, None] + offs_c[None, :])
    mask = in_x[:, None] & (offs_c < C)[None, :]
    f = load_as(f_ptrs, mask, first_ptr.dtype.element_ty, UP)
    return tl.dot(f, weight, total, input_precision=DOT)


@triton.jit
def _head_sum_kernel(
    levels, first_ptr, weight_ptr, out_ptr, rows_ptr, counts_ptr, lines, rows, H, W, E, C, tiles,
    blocks,
    BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, DOT: tl.constexpr,
    UP: tl.constexpr,
):  # fmt: skip
    """The map before the BatchNorm, and the statistics of chunks of its pixels.

    Args:
        levels: ``Levels``, projected.
        first_ptr: ``[B, H, W, C]``, the first level.
        weight_ptr: ``[E, C]``, its projection.
        out_ptr: ``[B, H, W, E]``, written.
        rows_ptr: ``[chunks, 2, E]`` float32, written: mean and variance.
        counts_ptr: ``[chunks]`` float32, written: number of pixels.
        lines: B H.
        rows: lines of a chunk.
        H: rows of the map.
        W: columns of the map.
        E: channels of the map.
        C: channels of the first level.
        tiles: of the columns.
        blocks: tiles of the channels.
        BLOCK_P: columns of a tile, all of one row.
        BLOCK_E: channels of a tile.
        BLOCK_C: at least C.
        DOT: precision of products of float32.
        UP: compute bfloat16 in float32, as the interpreter needs it.
    """
    pid = tl.program_id(0)
    chunk = pid // blocks
    offs_c = tl.arange(0, BLOCK_C)
    offs_e = pid % blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    in_e = offs_e < E
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    w_ptrs = weight_ptr + offs_c[:, None] + (offs_e * C)[None, :]
    weight = load_as(w_ptrs, (offs_c < C)[:, None] & in_e[None, :], dtype, UP)
    here = tl.minimum(rows, lines - chunk * rows)
    shift = tl.zeros((1, BLOCK_E), dtype=tl.float32)
    sums = tl.zeros((BLOCK_P, BLOCK_E), dtype=tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_E), dtype=tl.float32)
    for step in range(here * tiles):
        line = chunk * rows + step // tiles
        offs_x = step % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        in_x = offs_x < W
        column = tl.minimum(offs_x, W - 1)
        x = sum_of_levels(levels, line // H, line % H, column, offs_e, in_e, E)
        x = first_product(first_ptr, weight, line, column, in_x, W, C, x, BLOCK_C, DOT, UP)
        x = rounded_to(x, dtype, UP)
        out_ptrs = out_ptr + line.to(tl.int64) * W * E + ((offs_x * E)[:, None] + offs_e[None, :])
        tl.store(out_ptrs, x, mask=in_x[:, None] & in_e[None, :])
        x = x.to(tl.float32)
        if step == 0:
            # sums of what is left of a value among them cancel little
            is_first = (tl.arange(0, BLOCK_P) == 0)[:, None]
            shift = tl.sum(tl.where(is_first, x, 0.0), axis=0)[None, :]
        x = tl.where(in_x[:, None], x - shift, 0.0)
        sums += x
        squares += x * x
    count = (here * W).to(tl.float32)
    total = tl.sum(sums, axis=0)[None, :]
    offset = total / count
    deviations = tl.maximum(tl.sum(squares, axis=0)[None, :] - offset * total, 0.0)
    rows_ptrs = rows_ptr + chunk.to(tl.int64) * 2 * E + offs_e[None, :]
    tl.store(rows_ptrs, shift + offset, mask=in_e[None, :])
    tl.store(rows_ptrs + E, deviations / count, mask=in_e[None, :])
    tl.store(counts_ptr + chunk, count)


@triton.jit
def _head_statistics_kernel(
    rows_ptr, counts_ptr, out_ptr, running_mean_ptr, running_var_ptr, batches_ptr, rows,
    row_stride, count_stride, E, momentum,
    HAS_RUNNING: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Statistics of all pixels from those of their parts; the running ones take their share.

    Args:
        rows_ptr: ``[rows, 2, E]`` float32: mean and variance of each part.
        counts_ptr: ``[rows]`` float32: number of its pixels.
        out_ptr: ``[3, E]`` float32, written: mean, variance and number of all together.
        running_mean_ptr: ``[E]``, updated, if there are running statistics.
        running_var_ptr: ``[E]``, likewise, without bias.
        batches_ptr: int64 scalar, batches that they have seen, likewise.
        rows: parts.
        row_stride: elements from part to part.
        count_stride: the same of the numbers.
        E: channels.
        momentum: share of these statistics in the running ones.
        HAS_RUNNING: there are running statistics.
        BLOCK_S: parts of a tile.
        BLOCK_E: channels of a tile.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    offs_e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_e = offs_e < E
    number = tl.zeros((BLOCK_E,), dtype=tl.float32)
    mean = tl.zeros((BLOCK_E,), dtype=tl.float32)
    var = tl.zeros((BLOCK_E,), dtype=tl.float32)
    for sweep in tl.static_range(2):
        counts = tl.zeros((BLOCK_S, BLOCK_E), dtype=tl.float32)
        total = tl.zeros((BLOCK_S, BLOCK_E), dtype=tl.float32)
        for start in range(0, rows, BLOCK_S):
            offs_s = start + tl.arange(0, BLOCK_S)
            mask = (offs_s < rows)[:, None] & in_e[None, :]
            ptrs = rows_ptr + (offs_s.to(tl.int64) * row_stride)[:, None] + offs_e[None, :]
            means = tl.load(ptrs, mask=mask, other=0.0)
            count_ptrs = counts_ptr + offs_s.to(tl.int64) * count_stride
            count = tl.load(count_ptrs, mask=offs_s < rows, other=0.0)[:, None]
            if sweep == 0:
                counts += tl.broadcast_to(count, (BLOCK_S, BLOCK_E))
                total += count * means
            else:
                off = means - mean[None, :]
                total += count * (tl.load(ptrs + E, mask=mask, other=0.0) + off * off)
        if sweep == 0:
            number = tl.sum(counts, axis=0)
            mean = tl.sum(total, axis=0) / number
        else:
            var = tl.sum(total, axis=0) / number
    tl.store(out_ptr + offs_e, mean, mask=in_e)
    tl.store(out_ptr + E + offs_e, var, mask=in_e)
    tl.store(out_ptr + 2 * E + offs_e, number, mask=in_e)
    if HAS_RUNNING:
        dtype: tl.constexpr = running_mean_ptr.dtype.element_ty
        before = tl.load(running_mean_ptr + offs_e, mask=in_e, other=0.0).to(tl.float32)
        mean = (1.0 - momentum) * before + momentum * mean
        tl.store(running_mean_ptr + offs_e, rounded_to(mean, dtype, UP), mask=in_e)
        before = tl.load(running_var_ptr + offs_e, mask=in_e, other=0.0).to(tl.float32)
        unbiased = var * (number / tl.maximum(number - 1.0, 1.0))
        var = (1.0 - momentum) * before + momentum * unbiased
        tl.store(running_var_ptr + offs_e, rounded_to(var, dtype, UP), mask=in_e)
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)


@triton.jit
def _head_logits_kernel(
    x_ptr, stats_ptr, norm_weight_ptr, norm_bias_ptr, factor_ptr, weight_ptr, bias_ptr, out_ptr,
    pixels, E, K, tiles, eps,
    HAS_FACTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    DOT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Logits of a map: normalised, rectified, multiplied by a factor and classified.

    Args:
        x_ptr: ``[B, pixels, E]``.
        stats_ptr: ``[3, E]`` float32: mean, variance and number.
        norm_weight_ptr: ``[E]``.
        norm_bias_ptr: ``[E]``.
        factor_ptr: ``[B, E]``, if there is one.
        weight_ptr: ``[K, E]``, the classifier.
        bias_ptr: ``[K]``.
        out_ptr: ``[B, pixels, K]``, written.
        pixels: of a sample.
        E: channels.
        K: classes.
        tiles: of the pixels of a sample.
        eps: added to the variance.
        HAS_FACTOR: there is a factor.
        BLOCK_P: pixels of a tile.
        BLOCK_E: channels of a tile.
        BLOCK_K: at least K.
        DOT: precision of products of float32.
        UP: compute bfloat16 in float32, as the interpreter needs it.
    """
    sample = tl.program_id(0) // tiles
    offs_p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_k = tl.arange(0, BLOCK_K)
    in_p, in_k = offs_p < pixels, offs_k < K
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = sample.to(tl.int64) * pixels
    x_ptr += row * E
    logits = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        offs_e = start + tl.arange(0, BLOCK_E)
        in_e = offs_e < E
        mean, _, scale, shift = load_norm(stats_ptr, norm_weight_ptr, norm_bias_ptr, offs_e, in_e,
                                          E, eps)  # fmt: skip
        x_ptrs = x_ptr + ((offs_p * E)[:, None] + offs_e[None, :])
        x = tl.load(x_ptrs, mask=in_p[:, None] & in_e[None, :], other=0.0).to(tl.float32)
        z = tl.maximum((x - mean) * scale + shift, 0.0)
        if HAS_FACTOR:
            z *= tl.load(factor_ptr + sample * E + offs_e, mask=in_e, other=0.0).to(tl.float32)
        w_ptrs = weight_ptr + offs_e[:, None] + (offs_k * E)[None, :]
        w = load_as(w_ptrs, in_e[:, None] & in_k[None, :], dtype, UP)
        logits = tl.dot(factor_of(z, dtype, UP), w, logits, input_precision=DOT)
    logits += tl.load(bias_ptr + offs_k, mask=in_k, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + row * K + ((offs_p * K)[:, None] + offs_k[None, :])
    out = rounded_to(logits, out_ptr.dtype.element_ty, UP)
    tl.store(out_ptrs, out, mask=in_p[:, None] & in_k[None, :])


@triton.jit
def _head_frozen_kernel(
    levels, first_ptr, weight_ptr, classifier_ptr, bias_ptr, out_ptr, H, W, E, C, K, tiles,
    BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    DOT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Logits of a head whose BatchNorm is part of its projections; its map is never written.

    Args:
        levels: ``Levels``, projected.
        first_ptr: ``[B, H, W, C]``, the first level.
        weight_ptr: ``[E, C]``, its projection.
        classifier_ptr: ``[K, E]``.
        bias_ptr: ``[K]``.
        out_ptr: ``[B, H, W, K]``, written.
        H: rows of the logits.
        W: columns of the logits.
        E: channels of the map.
        C: channels of the first level.
        K: classes.
        tiles: of the columns.
        BLOCK_P: columns of a tile, all of one row.
        BLOCK_E: channels of a tile.
        BLOCK_C: at least C.
        BLOCK_K: at least K.
        DOT: precision of products of float32.
        UP: compute bfloat16 in float32, as the interpreter needs it.
    """
    line = tl.program_id(0) // tiles
    offs_x = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_c, offs_k = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    in_x, in_k = offs_x < W, offs_k < K
    column = tl.minimum(offs_x, W - 1)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    logits = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        offs_e = start + tl.arange(0, BLOCK_E)
        in_e = offs_e < E
        w_ptrs = weight_ptr + offs_c[:, None] + (offs_e * C)[None, :]
        weight = load_as(w_ptrs, (offs_c < C)[:, None] & in_e[None, :], dtype, UP)
        x = sum_of_levels(levels, line // H, line % H, column, offs_e, in_e, E)
        x = first_product(first_ptr, weight, line, column, in_x, W, C, x, BLOCK_C, DOT, UP)
        w_ptrs = classifier_ptr + offs_e[:, None] + (offs_k * E)[None, :]
        w = load_as(w_ptrs, in_e[:, None] & in_k[None, :], dtype, UP)
        z = factor_of(tl.maximum(x, 0.0), dtype, UP)
        logits = tl.dot(z, w, logits, input_precision=DOT)
    logits += tl.load(bias_ptr + offs_k, mask=in_k, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + line.to(tl.int64) * W * K + ((offs_x * K)[:, None] + offs_k[None, :])
    tl.store(out_ptrs, rounded_to(logits, dtype, UP), mask=in_x[:, None] & in_k[None, :])
