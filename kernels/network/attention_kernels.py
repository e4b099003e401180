"""The kernels of reduced attention: forward, gradient of the queries, of the keys and values.

A program owns a block of queries of one image and head and goes along the keys, or a block of keys
and goes along a range of queries; what it sums stays in registers. Scores are kept in units of
log2(e) / sqrt(d), so that one multiply-add lies between a product and ``exp2``.
"""

import triton
import triton.language as tl

from ..common.rounding import rounded_to


@triton.jit
def _rows(ptr, first, stride, limit, D: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
          UP: tl.constexpr):  # fmt: skip
    """Rows ``[BLOCK, D]`` from the pointer on, zero where ``first`` and more is past the limit."""
    offs = tl.arange(0, BLOCK)
    ptrs = ptr + (offs[:, None] * stride + tl.arange(0, D)[None, :])
    if EVEN:  # noqa: SIM108
        x = tl.load(ptrs)
    else:
        x = tl.load(ptrs, mask=(first + offs < limit)[:, None], other=0.0)
    return x.to(tl.float32) if UP else x


@triton.jit
def _short(x, dtype: tl.constexpr, UP: tl.constexpr):
    """Float32 in the dtype of the products; rounded, but float32 in the interpreter."""
    x = rounded_to(x, dtype, UP)
    return x.to(tl.float32) if UP else x


@triton.jit
def _reduced_attention_fwd_kernel(
    q_ptr, kv_ptr, out_ptr, lse_ptr, L, S, heads, q_stride_n, q_stride_l, q_stride_h,
    kv_stride_n, kv_stride_s, kv_stride_2, kv_stride_h, factor,
    D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr, EVEN_L: tl.constexpr,
    EVEN_S: tl.constexpr, PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Attention and the logarithm of each query's sum of exponentials.

    Args:
        q_ptr: queries ``[N, L, heads, D]`` with contiguous D.
        kv_ptr: keys and values ``[N, S, 2, heads, D]`` with contiguous D.
        out_ptr: ``[N, L, heads, D]``, contiguous, written.
        lse_ptr: ``[N, heads, L]`` float32, to base 2, written.
        L: queries of an image.
        S: keys of an image.
        heads: number of heads.
        q_stride_n: elements from image to image of the queries.
        q_stride_l: elements from token to token.
        q_stride_h: elements from head to head.
        kv_stride_n: elements from image to image of the keys.
        kv_stride_s: elements from token to token.
        kv_stride_2: elements from the keys to the values.
        kv_stride_h: elements from head to head.
        factor: ``log2(e) / sqrt(D)``.
        D: channels of a head.
        BLOCK_L: queries of a tile.
        BLOCK_S: keys of a tile.
        EVEN_L: BLOCK_L divides L.
        EVEN_S: BLOCK_S divides S.
        PRECISION: of the products of float32.
        UP: see ``common.switch``.
    """
    blocks = tl.cdiv(L, BLOCK_L)
    first = tl.program_id(0) % blocks * BLOCK_L
    pair = tl.program_id(0) // blocks
    n, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    q = _rows(q_ptr + (n * q_stride_n + h * q_stride_h + first.to(tl.int64) * q_stride_l),
              first, q_stride_l, L, D, BLOCK_L, EVEN_L, UP)  # fmt: skip
    kv_ptr += n * kv_stride_n + h * kv_stride_h
    offs_s = tl.arange(0, BLOCK_S)
    top = tl.full((BLOCK_L,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_L,), dtype=tl.float32)
    out = tl.zeros((BLOCK_L, D), dtype=tl.float32)
    for start in range(0, S, BLOCK_S):
        k = _rows(kv_ptr, start, kv_stride_s, S, D, BLOCK_S, EVEN_S, UP)
        v = _rows(kv_ptr + kv_stride_2, start, kv_stride_s, S, D, BLOCK_S, EVEN_S, UP)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if not EVEN_S:
            scores = tl.where((start + offs_s < S)[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1) * factor)
        weights = tl.exp2(scores * factor - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        out = tl.dot(_short(weights, dtype, UP), v, out * shrink[:, None],
                     input_precision=PRECISION)  # fmt: skip
        top = higher
        kv_ptr += BLOCK_S * kv_stride_s
    offs_l = first + tl.arange(0, BLOCK_L)
    in_l = offs_l < L
    width = heads * D
    place = (n * L + first) * width + h * D
    offs = tl.arange(0, BLOCK_L)[:, None] * width + tl.arange(0, D)[None, :]
    tl.store(out_ptr + place + offs, rounded_to(out / total[:, None], dtype, UP),
             mask=in_l[:, None])  # fmt: skip
    tl.store(lse_ptr + (pair.to(tl.int64) * L + offs_l), top + tl.log2(total), mask=in_l)


@triton.jit
def _reduced_attention_query_kernel(
    q_ptr, kv_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, grad_q_ptr, L, S, heads,
    q_stride_n, q_stride_l, q_stride_h, kv_stride_n, kv_stride_s, kv_stride_2, kv_stride_h,
    grad_stride_n, grad_stride_l, grad_stride_h, factor, scale,
    D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr, EVEN_L: tl.constexpr,
    EVEN_S: tl.constexpr, PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries, and what the kernel of the keys needs of every query.

    Args:
        q_ptr: as for the forward kernel, like all that is not named here.
        kv_ptr: keys and values.
        out_ptr: ``[N, L, heads, D]``, contiguous: what the forward kernel wrote.
        grad_ptr: gradient of it ``[N, L, heads, D]`` with contiguous D.
        lse_ptr: ``[N, heads, L]`` float32: what the forward kernel wrote.
        delta_ptr: ``[N, heads, L]`` float32, products of out and its gradient, written.
        grad_q_ptr: ``[N, L, heads, D]``, contiguous, written.
        L: queries of an image.
        S: keys of an image.
        heads: number of heads.
        q_stride_n: strides of the queries.
        q_stride_l: token to token.
        q_stride_h: head to head.
        kv_stride_n: strides of the keys.
        kv_stride_s: token to token.
        kv_stride_2: keys to values.
        kv_stride_h: head to head.
        grad_stride_n: elements from image to image of the gradient.
        grad_stride_l: elements from token to token.
        grad_stride_h: elements from head to head.
        factor: ``log2(e) / sqrt(D)``.
        scale: ``1 / sqrt(D)``.
        D: channels of a head.
        BLOCK_L: queries of a tile.
        BLOCK_S: keys of a tile.
        EVEN_L: BLOCK_L divides L.
        EVEN_S: BLOCK_S divides S.
        PRECISION: of the products of float32.
        UP: see ``common.switch``.
    """
    blocks = tl.cdiv(L, BLOCK_L)
    first = tl.program_id(0) % blocks * BLOCK_L
    pair = tl.program_id(0) // blocks
    n, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    q = _rows(q_ptr + (n * q_stride_n + h * q_stride_h + first.to(tl.int64) * q_stride_l),
              first, q_stride_l, L, D, BLOCK_L, EVEN_L, UP)  # fmt: skip
    grad_ptr += n * grad_stride_n + h * grad_stride_h + first.to(tl.int64) * grad_stride_l
    grad = _rows(grad_ptr, first, grad_stride_l, L, D, BLOCK_L, EVEN_L, UP)
    width = heads * D
    place = (n * L + first) * width + h * D
    out = _rows(out_ptr + place, first, width, L, D, BLOCK_L, EVEN_L, UP)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), axis=1)
    offs_l = first + tl.arange(0, BLOCK_L)
    in_l = offs_l < L
    of_l = pair.to(tl.int64) * L + offs_l
    tl.store(delta_ptr + of_l, delta, mask=in_l)
    lse = tl.load(lse_ptr + of_l, mask=in_l, other=0.0)
    kv_ptr += n * kv_stride_n + h * kv_stride_h
    offs_s = tl.arange(0, BLOCK_S)
    grad_q = tl.zeros((BLOCK_L, D), dtype=tl.float32)
    for start in range(0, S, BLOCK_S):
        k = _rows(kv_ptr, start, kv_stride_s, S, D, BLOCK_S, EVEN_S, UP)
        v = _rows(kv_ptr + kv_stride_2, start, kv_stride_s, S, D, BLOCK_S, EVEN_S, UP)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        weights = tl.exp2(scores * factor - lse[:, None])
        if not EVEN_S:
            weights = tl.where((start + offs_s < S)[None, :], weights, 0.0)
        pull = tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None]
        grad_q = tl.dot(_short(weights * pull, dtype, UP), k, grad_q, input_precision=PRECISION)
        kv_ptr += BLOCK_S * kv_stride_s
    offs = tl.arange(0, BLOCK_L)[:, None] * width + tl.arange(0, D)[None, :]
    tl.store(grad_q_ptr + place + offs, rounded_to(grad_q * scale, dtype, UP),
             mask=in_l[:, None])  # fmt: skip


@triton.jit
def _reduced_attention_key_kernel(
    q_ptr, kv_ptr, grad_ptr, lse_ptr, delta_ptr, grad_kv_ptr, N, L, S, heads, parts, chunk,
    q_stride_n, q_stride_l, q_stride_h, kv_stride_n, kv_stride_s, kv_stride_2, kv_stride_h,
    grad_stride_n, grad_stride_l, grad_stride_h, factor, scale,
    D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr, EVEN_L: tl.constexpr,
    EVEN_S: tl.constexpr, PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, summed over a range of the queries.

    Args:
        q_ptr: as for the forward kernel, like all that is not named here.
        kv_ptr: keys and values.
        grad_ptr: gradient of the result ``[N, L, heads, D]`` with contiguous D.
        lse_ptr: ``[N, heads, L]`` float32: what the forward kernel wrote.
        delta_ptr: ``[N, heads, L]`` float32: what the kernel of the queries wrote.
        grad_kv_ptr: ``[parts, N, S, 2, heads, D]``, contiguous, written in its dtype.
        N: images.
        L: queries of an image.
        S: keys of an image.
        heads: number of heads.
        parts: ranges of queries.
        chunk: queries of a range, a multiple of BLOCK_L.
        q_stride_n: strides of the queries.
        q_stride_l: token to token.
        q_stride_h: head to head.
        kv_stride_n: strides of the keys.
        kv_stride_s: token to token.
        kv_stride_2: keys to values.
        kv_stride_h: head to head.
        grad_stride_n: strides of the gradient.
        grad_stride_l: token to token.
        grad_stride_h: head to head.
        factor: ``log2(e) / sqrt(D)``.
        scale: ``1 / sqrt(D)``.
        D: channels of a head.
        BLOCK_L: queries of a tile.
        BLOCK_S: keys of a tile.
        EVEN_L: BLOCK_L divides L.
        EVEN_S: BLOCK_S divides S.
        PRECISION: of the products of float32.
        UP: see ``common.switch``.
    """
    blocks = tl.cdiv(S, BLOCK_S)
    first = tl.program_id(0) % blocks * BLOCK_S
    rest = tl.program_id(0) // blocks
    part, pair = rest % parts, rest // parts
    n, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    begin = part * chunk
    kv_ptr += n * kv_stride_n + h * kv_stride_h + first.to(tl.int64) * kv_stride_s
    k = _rows(kv_ptr, first, kv_stride_s, S, D, BLOCK_S, EVEN_S, UP)
    v = _rows(kv_ptr + kv_stride_2, first, kv_stride_s, S, D, BLOCK_S, EVEN_S, UP)
    q_ptr += n * q_stride_n + h * q_stride_h + begin.to(tl.int64) * q_stride_l
    grad_ptr += n * grad_stride_n + h * grad_stride_h + begin.to(tl.int64) * grad_stride_l
    of_l = pair.to(tl.int64) * L
    offs_l = tl.arange(0, BLOCK_L)
    grad_k = tl.zeros((BLOCK_S, D), dtype=tl.float32)
    grad_v = tl.zeros((BLOCK_S, D), dtype=tl.float32)
    # queries past the end are zero, and so is their gradient: they add nothing
    for start in range(begin, tl.minimum(begin + chunk, L), BLOCK_L):
        q = _rows(q_ptr, start, q_stride_l, L, D, BLOCK_L, EVEN_L, UP)
        grad = _rows(grad_ptr, start, grad_stride_l, L, D, BLOCK_L, EVEN_L, UP)
        in_l = start + offs_l < L
        lse = tl.load(lse_ptr + of_l + start + offs_l, mask=in_l, other=0.0)
        delta = tl.load(delta_ptr + of_l + start + offs_l, mask=in_l, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        weights = tl.exp2(scores * factor - lse[None, :])
        grad_v = tl.dot(_short(weights, dtype, UP), grad, grad_v, input_precision=PRECISION)
        pull = tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :]
        grad_k = tl.dot(_short(weights * pull, dtype, UP), q, grad_k, input_precision=PRECISION)
        q_ptr += BLOCK_L * q_stride_l
        grad_ptr += BLOCK_L * grad_stride_l
    width = heads * D
    place = (((part.to(tl.int64) * N + n) * S + first) * 2 * heads + h) * D
    offs = tl.arange(0, BLOCK_S)[:, None] * (2 * width) + tl.arange(0, D)[None, :]
    in_s = (first + tl.arange(0, BLOCK_S) < S)[:, None]
    to: tl.constexpr = grad_kv_ptr.dtype.element_ty
    tl.store(grad_kv_ptr + place + offs, rounded_to(grad_k * scale, to, UP), mask=in_s)
    tl.store(grad_kv_ptr + place + width + offs, rounded_to(grad_v, to, UP), mask=in_s)


@triton.jit
def _reduced_attention_sum_kernel(
    parts_ptr, out_ptr, elements, parts, BLOCK: tl.constexpr, UP: tl.constexpr
):
    """Sum ``out [elements]`` of ``parts [parts, elements]`` float32, in the order of the parts."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < elements
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(0, parts):
        total += tl.load(parts_ptr + offs, mask=mask, other=0.0)
        parts_ptr += elements
    tl.store(out_ptr + offs, rounded_to(total, out_ptr.dtype.element_ty, UP), mask=mask)
