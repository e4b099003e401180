"""The kernels of the head's backward pass: its sums, then the gradients of its maps.

With ``v = (x - mean) scale + bias``, ``scale = weight / sqrt(var + eps)``, the gradient g of v and
sums over the N pixels of all samples

    dx = scale (g - sum(g) / N - (x - mean) sum(g (x - mean)) / ((var + eps) N))

so the sums have to be known before dx is. What multiplies dx afterwards does not need it as a map:
the first level's gradient is ``W^T dx`` of a pixel, and that of its projection follows from
``sum(g f)``, ``sum(x f)`` and ``sum(f)``.
"""

import triton
import triton.language as tl

from ...common.rounding import rounded_to
from .mlp_head_tiles import factor_of, load_as, load_classifier, load_norm, product_by_classes


@triton.jit
def _head_bwd_sums_kernel(
    grad_ptr, x_ptr, first_ptr, stats_ptr, norm_weight_ptr, norm_bias_ptr, factor_ptr, weight_ptr,
    sums_ptr, products_ptr, columns_ptr, pixels, E, C, K, chunks, chunk, blocks, eps,
    HAS_FACTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, STEP_K: tl.constexpr, DOT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Sums over chunks of pixels that the gradients of parameters and maps need.

    Args:
        grad_ptr: ``[B, pixels, K]``, gradient of the logits.
        x_ptr: ``[B, pixels, E]``.
        first_ptr: ``[B, pixels, C]``.
        stats_ptr: ``[3, E]`` float32.
        norm_weight_ptr: ``[E]``.
        norm_bias_ptr: ``[E]``.
        factor_ptr: ``[B, E]``, if there is one.
        weight_ptr: ``[K, E]``, the classifier.
        sums_ptr: ``[B chunks, 2, E]`` float32, written: of g and g (x - mean).
        products_ptr: ``[B chunks, K + 2 C, E]`` float32, written: of the classifier's gradient, of
            g f and of (x - mean) f.
        columns_ptr: ``[B chunks, K + C]`` float32, written: of the gradient and of f.
        pixels: of a sample.
        E: channels.
        C: channels of the first level.
        K: classes.
        chunks: of a sample.
        chunk: pixels of a chunk.
        blocks: tiles of the channels.
        eps: added to the variance.
        HAS_FACTOR: there is a factor.
        BLOCK_P: pixels of a tile.
        BLOCK_E: channels of a tile.
        BLOCK_C: at least C.
        BLOCK_K: at least K.
        STEP_K: classes that are multiplied at a time; less than BLOCK_K where registers are short.
        DOT: precision of products of float32.
        UP: compute bfloat16 in float32, as the interpreter needs it.
    """
    pid = tl.program_id(0)
    part = pid // blocks
    sample = part // chunks
    begin = part % chunks * chunk
    offs_e = pid % blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    offs_c, offs_k = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    in_e, in_c, in_k = offs_e < E, offs_c < C, offs_k < K
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    w = load_classifier(weight_ptr, offs_e, in_e, E, K, dtype, BLOCK_K, UP)
    mean, _, scale, shift = load_norm(stats_ptr, norm_weight_ptr, norm_bias_ptr, offs_e, in_e,
                                      E, eps)  # fmt: skip
    factor = tl.full((BLOCK_E,), 1.0, tl.float32)
    if HAS_FACTOR:
        factor = tl.load(factor_ptr + sample * E + offs_e, mask=in_e, other=0.0).to(tl.float32)
    row = sample.to(tl.int64) * pixels
    x_ptr += row * E
    first_ptr += row * C
    grad_ptr += row * K
    sum_g = tl.zeros((BLOCK_P, BLOCK_E), dtype=tl.float32)
    sum_gx = tl.zeros((BLOCK_P, BLOCK_E), dtype=tl.float32)
    d_weight = tl.zeros((BLOCK_K, BLOCK_E), dtype=tl.float32)
    with_g = tl.zeros((BLOCK_C, BLOCK_E), dtype=tl.float32)
    with_x = tl.zeros((BLOCK_C, BLOCK_E), dtype=tl.float32)
    sum_d = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    sum_f = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for start in range(0, chunk, BLOCK_P):
        offs_p = begin + start + tl.arange(0, BLOCK_P)
        in_p = offs_p < pixels
        d_ptrs = grad_ptr + ((offs_p * K)[:, None] + offs_k[None, :])
        d = load_as(d_ptrs, in_p[:, None] & in_k[None, :], dtype, UP)
        f_ptrs = first_ptr + ((offs_p * C)[:, None] + offs_c[None, :])
        f = load_as(f_ptrs, in_p[:, None] & in_c[None, :], dtype, UP)
        sum_d += d.to(tl.float32)
        sum_f += f.to(tl.float32)
        f = tl.trans(f)
        x_ptrs = x_ptr + ((offs_p * E)[:, None] + offs_e[None, :])
        inside = in_p[:, None] & in_e[None, :]
        x = tl.load(x_ptrs, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - mean, 0.0)
        v = x * scale + shift
        z = tl.where(inside, tl.maximum(v, 0.0) * factor[None, :], 0.0)
        if STEP_K < BLOCK_K:
            g = product_by_classes(grad_ptr, weight_ptr, offs_p, in_p, offs_e, in_e, E, K, dtype,
                                   BLOCK_K, STEP_K, DOT, UP)  # fmt: skip
        else:
            g = tl.dot(d, w, input_precision=DOT)
        g = tl.where(inside & (v > 0.0), g * factor[None, :], 0.0)
        sum_g += g
        sum_gx += g * x
        d_weight = tl.dot(tl.trans(d), factor_of(z, dtype, UP), d_weight, input_precision=DOT)
        with_g = tl.dot(f, factor_of(g, dtype, UP), with_g, input_precision=DOT)
        with_x = tl.dot(f, factor_of(x, dtype, UP), with_x, input_precision=DOT)
    sums_ptrs = sums_ptr + part.to(tl.int64) * 2 * E + offs_e
    tl.store(sums_ptrs, tl.sum(sum_g, axis=0), mask=in_e)
    tl.store(sums_ptrs + E, tl.sum(sum_gx, axis=0), mask=in_e)
    products_ptr += part.to(tl.int64) * (K + 2 * C) * E
    k_ptrs = products_ptr + (offs_k * E)[:, None] + offs_e[None, :]
    tl.store(k_ptrs, d_weight, mask=in_k[:, None] & in_e[None, :])
    c_ptrs = products_ptr + ((K + offs_c) * E)[:, None] + offs_e[None, :]
    tl.store(c_ptrs, with_g, mask=in_c[:, None] & in_e[None, :])
    tl.store(c_ptrs + C * E, with_x, mask=in_c[:, None] & in_e[None, :])
    # all tiles of the channels have these sums
    first = pid % blocks == 0
    columns_ptr += part.to(tl.int64) * (K + C)
    tl.store(columns_ptr + offs_k, tl.sum(sum_d, axis=0), mask=in_k & first)
    tl.store(columns_ptr + K + offs_c, tl.sum(sum_f, axis=0), mask=in_c & first)


@triton.jit
def _head_bwd_reduce_kernel(
    sums_ptr, stats_ptr, out_ptr, d_norm_weight_ptr, d_norm_bias_ptr, parts, E, eps,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Sums of all chunks, and what the BatchNorm's parameters have of them.

    Args:
        sums_ptr: ``[parts, 2, E]`` float32: of g and g (x - mean).
        stats_ptr: ``[3, E]`` float32.
        out_ptr: ``[2, E]`` float32, written.
        d_norm_weight_ptr: ``[E]``, written.
        d_norm_bias_ptr: ``[E]``, written.
        parts: chunks of all samples.
        E: channels.
        eps: added to the variance.
        BLOCK_S: chunks of a tile.
        BLOCK_E: channels of a tile.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    offs_e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_e = offs_e < E
    sum_g = tl.zeros((BLOCK_S, BLOCK_E), dtype=tl.float32)
    sum_gx = tl.zeros((BLOCK_S, BLOCK_E), dtype=tl.float32)
    for start in range(0, parts, BLOCK_S):
        offs_s = start + tl.arange(0, BLOCK_S)
        mask = (offs_s < parts)[:, None] & in_e[None, :]
        ptrs = sums_ptr + (offs_s * 2 * E)[:, None] + offs_e[None, :]
        sum_g += tl.load(ptrs, mask=mask, other=0.0)
        sum_gx += tl.load(ptrs + E, mask=mask, other=0.0)
    d_bias, with_x = tl.sum(sum_g, axis=0), tl.sum(sum_gx, axis=0)
    tl.store(out_ptr + offs_e, d_bias, mask=in_e)
    tl.store(out_ptr + E + offs_e, with_x, mask=in_e)
    var = tl.load(stats_ptr + E + offs_e, mask=in_e, other=1.0)
    d_weight = with_x * tl.rsqrt(var + eps)
    d_weight = rounded_to(d_weight, d_norm_weight_ptr.dtype.element_ty, UP)
    tl.store(d_norm_weight_ptr + offs_e, d_weight, mask=in_e)
    d_bias = rounded_to(d_bias, d_norm_bias_ptr.dtype.element_ty, UP)
    tl.store(d_norm_bias_ptr + offs_e, d_bias, mask=in_e)


@triton.jit
def _head_bwd_maps_kernel(
    grad_ptr, x_ptr, stats_ptr, sums_ptr, norm_weight_ptr, norm_bias_ptr, factor_ptr, weight_ptr,
    projection_ptr, dx_ptr, d_first_ptr, pixels, E, C, K, tiles, eps,
    HAS_FACTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, DOT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradients of the map before the BatchNorm and of the first level.

    Args:
        grad_ptr: ``[B, pixels, K]``, gradient of the logits.
        x_ptr: ``[B, pixels, E]``.
        stats_ptr: ``[3, E]`` float32: mean, variance and number, infinite for constant statistics.
        sums_ptr: ``[2, E]`` float32, of g and g (x - mean) over the pixels of the statistics.
        norm_weight_ptr: ``[E]``.
        norm_bias_ptr: ``[E]``.
        factor_ptr: ``[B, E]``, if there is one.
        weight_ptr: ``[K, E]``, the classifier.
        projection_ptr: ``[E, C]``, of the first level.
        dx_ptr: ``[B, pixels, E]``, written.
        d_first_ptr: ``[B, pixels, C]``, written.
        pixels: of a sample.
        E: channels.
        C: channels of the first level.
        K: classes.
        tiles: of the pixels of a sample.
        eps: added to the variance.
        HAS_FACTOR: there is a factor.
        BLOCK_P: pixels of a tile.
        BLOCK_E: channels of a tile.
        BLOCK_C: at least C.
        BLOCK_K: at least K.
        DOT: precision of products of float32.
        UP: compute bfloat16 in float32, as the interpreter needs it.
    """
    sample = tl.program_id(0) // tiles
    offs_p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_c, offs_k = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    in_p, in_c, in_k = offs_p < pixels, offs_c < C, offs_k < K
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = sample.to(tl.int64) * pixels
    d_ptrs = grad_ptr + row * K + ((offs_p * K)[:, None] + offs_k[None, :])
    d = load_as(d_ptrs, in_p[:, None] & in_k[None, :], dtype, UP)
    d_first = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    share = 1.0 / tl.load(stats_ptr + 2 * E)
    for start in range(0, E, BLOCK_E):
        offs_e = start + tl.arange(0, BLOCK_E)
        in_e = offs_e < E
        inside = in_p[:, None] & in_e[None, :]
        mean, inverse, scale, shift = load_norm(stats_ptr, norm_weight_ptr, norm_bias_ptr, offs_e,
                                                in_e, E, eps)  # fmt: skip
        mean_g = tl.load(sums_ptr + offs_e, mask=in_e, other=0.0) * share
        slope = tl.load(sums_ptr + E + offs_e, mask=in_e, other=0.0) * share
        slope = slope[None, :] * inverse * inverse
        w = load_classifier(weight_ptr, offs_e, in_e, E, K, dtype, BLOCK_K, UP)
        g = tl.dot(d, w, input_precision=DOT)
        if HAS_FACTOR:
            factor = tl.load(factor_ptr + sample * E + offs_e, mask=in_e, other=0.0)
            g *= factor.to(tl.float32)[None, :]
        place = (offs_p * E)[:, None] + offs_e[None, :]
        x = tl.load(x_ptr + row * E + place, mask=inside, other=0.0).to(tl.float32) - mean
        g = tl.where(x * scale + shift > 0.0, g, 0.0)
        dx = rounded_to(scale * (g - mean_g[None, :] - slope * x), dtype, UP)
        tl.store(dx_ptr + row * E + place, dx, mask=inside)
        p_ptrs = projection_ptr + (offs_e * C)[:, None] + offs_c[None, :]
        p = load_as(p_ptrs, in_e[:, None] & in_c[None, :], dtype, UP)
        if UP:
            dx = dx.to(tl.float32)
        d_first = tl.dot(dx, p, d_first, input_precision=DOT)
    c_ptrs = d_first_ptr + row * C + ((offs_p * C)[:, None] + offs_c[None, :])
    d_first = rounded_to(d_first, d_first_ptr.dtype.element_ty, UP)
    tl.store(c_ptrs, d_first, mask=in_p[:, None] & in_c[None, :])


@triton.jit
def _head_bwd_weights_kernel(
    products_ptr, columns_ptr, stats_ptr, sums_ptr, norm_weight_ptr, d_weight_ptr, d_bias_ptr,
    d_projection_ptr, parts, E, C, K, eps,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradients of the classifier and of the first level's projection, from the sums of chunks.

    Args:
        products_ptr: ``[parts, K + 2 C, E]`` float32.
        columns_ptr: ``[parts, K + C]`` float32.
        stats_ptr: ``[3, E]`` float32.
        sums_ptr: ``[2, E]`` float32.
        norm_weight_ptr: ``[E]``.
        d_weight_ptr: ``[K, E]``, written.
        d_bias_ptr: ``[K]``, written.
        d_projection_ptr: ``[E, C]``, written.
        parts: chunks of all samples, added in their order.
        E: channels.
        C: channels of the first level.
        K: classes.
        eps: added to the variance.
        BLOCK_R: rows of a tile, of the classifier's first, then of the projection's.
        BLOCK_E: channels of a tile.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    offs_e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    offs_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_e, of_class, exists = offs_e < E, offs_r < K, offs_r < K + C
    is_first = exists & (offs_r >= K)
    place = (offs_r * E)[:, None] + offs_e[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_E), dtype=tl.float32)
    with_x = tl.zeros((BLOCK_R, BLOCK_E), dtype=tl.float32)
    column = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for _part in range(parts):
        total += tl.load(products_ptr + place, mask=exists[:, None] & in_e[None, :], other=0.0)
        x_ptrs = products_ptr + C * E + place
        with_x += tl.load(x_ptrs, mask=is_first[:, None] & in_e[None, :], other=0.0)
        products_ptr += (K + 2 * C) * E
        column += tl.load(columns_ptr + offs_r, mask=exists, other=0.0)
        columns_ptr += K + C
    out = rounded_to(total, d_weight_ptr.dtype.element_ty, UP)
    tl.store(d_weight_ptr + place, out, mask=of_class[:, None] & in_e[None, :])
    out = rounded_to(column, d_bias_ptr.dtype.element_ty, UP)
    tl.store(d_bias_ptr + offs_r, out, mask=of_class & (tl.program_id(0) == 0))
    _, inverse, scale, _ = load_norm(stats_ptr, norm_weight_ptr, norm_weight_ptr, offs_e, in_e,
                                     E, eps)  # fmt: skip
    share = 1.0 / tl.load(stats_ptr + 2 * E)
    mean_g = tl.load(sums_ptr + offs_e, mask=in_e, other=0.0) * share
    slope = tl.load(sums_ptr + E + offs_e, mask=in_e, other=0.0) * share
    slope = slope[None, :] * inverse * inverse
    total = scale * (total - mean_g[None, :] * column[:, None] - slope * with_x)
    out = rounded_to(total, d_projection_ptr.dtype.element_ty, UP)
    p_ptrs = d_projection_ptr + (offs_e * C)[None, :] + (offs_r - K)[:, None]
    tl.store(p_ptrs, out, mask=is_first[:, None] & in_e[None, :])
