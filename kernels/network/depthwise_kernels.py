"""The kernels of :mod:`.depthwise`: a 3x3 convolution down the rows of an image.

A program owns a block of columns and of channels, ``[BLOCK_W, BLOCK_C]``, and walks down some rows.
A row comes in by three loads, shifted by -1, 0 and 1 columns, of which the cache serves two, while
the row before it is computed; the nine weights of a channel stay in registers. Outside the image
are zeros. The number of channels is compiled in, so neighbours are a constant apart.
"""

import triton
import triton.language as tl

from ..common.rounding import rounded_to
from .gelu import gelu, gelu_slope


@triton.jit
def _place(pid, h, w, rows, C: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image, rows, columns and channels of a program, and its number but for the channels."""
    channel_blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    column_blocks, chunks = tl.cdiv(w, BLOCK_W), tl.cdiv(h, rows)
    offs_c = pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    part = pid // channel_blocks
    offs_w = part % column_blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    chunk = part // column_blocks
    first = chunk % chunks * rows
    image = (chunk // chunks).to(tl.int64)
    return image, first, tl.minimum(first + rows, h), offs_w, offs_c, part


@triton.jit
def _masks(offs_w, offs_c, w, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which elements of a tile there are one column to the left, here, and one to the right."""
    left = ((offs_w > 0) & (offs_w - 1 < w))[:, None]
    middle, right = (offs_w < w)[:, None], (offs_w + 1 < w)[:, None]
    if C % BLOCK_C != 0:
        there = (offs_c < C)[None, :]
        left, middle, right = left & there, middle & there, right & there
    return left, middle, right


@triton.jit
def _three_columns(ptrs, left, middle, right, there, C: tl.constexpr):
    """A row's tile and its neighbours on both sides; zeros if the row is not there."""
    return (
        tl.load(ptrs - C, mask=left & there, other=0.0),
        tl.load(ptrs, mask=middle & there, other=0.0),
        tl.load(ptrs + C, mask=right & there, other=0.0),
    )


@triton.jit
def _nine_weights(weight_ptr, offs_c, C: tl.constexpr, FLIP: tl.constexpr):
    """Weights of some channels, row by row; the last one first where the gradient is taken."""
    found = ()
    for tap in tl.static_range(9):
        ptrs = weight_ptr + offs_c * 9 + (8 - tap if FLIP else tap)
        weight = tl.load(ptrs, mask=offs_c < C, other=0.0).to(tl.float32)
        found = found + (weight[None, :],)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.jit
def _convolve(
    x_ptr, out_ptr, weights, bias, image, first, last, offs_w, offs_c, h, w,
    C: tl.constexpr, GELU: tl.constexpr, UP: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``last`` of the convolution of a program's tile, with GELU or without."""
    left, middle, right = _masks(offs_w, offs_c, w, C, BLOCK_C)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = weights
    start = (image * h + first - 1) * w * C
    x_ptrs = x_ptr + start + (offs_w[:, None] * C + offs_c[None, :])
    out_ptrs = out_ptr + start - w * C + (offs_w[:, None] * C + offs_c[None, :])
    # a row of x belongs to three rows of the result: what two of them have so far
    above = tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32)
    here = tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32)
    a, b, c = _three_columns(x_ptrs, left, middle, right, first > 0, C)
    for r in range(first - 1, last + 1):
        x_ptrs += w * C
        below = r + 1 < tl.minimum(last + 1, h)
        next_a, next_b, next_c = _three_columns(x_ptrs, left, middle, right, below, C)
        a, b, c = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32)
        done = above + w6 * a + w7 * b + w8 * c
        above = here + w3 * a + w4 * b + w5 * c
        here = bias + w0 * a + w1 * b + w2 * c
        if GELU:
            done = gelu(done, UP)
        done = rounded_to(done, out_ptr.dtype.element_ty, UP)
        tl.store(out_ptrs, done, mask=middle & (r > first))
        out_ptrs += w * C
        a, b, c = next_a, next_b, next_c


@triton.jit(do_not_specialize=["h", "w", "rows"])
def _depthwise_conv_gelu_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, h, w, rows,
    C: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """The layer.

    Args:
        x_ptr: ``[N, h, w, C]``, contiguous.
        weight_ptr: ``[C, 9]``.
        bias_ptr: ``[C]``.
        out_ptr: ``[N, h, w, C]``, written.
        h: rows.
        w: columns.
        rows: rows of a program.
        C: channels.
        BLOCK_W: columns of a program.
        BLOCK_C: channels of a program.
        UP: the interpreter's bfloat16.
    """
    image, first, last, offs_w, offs_c, _ = _place(
        tl.program_id(0), h, w, rows, C, BLOCK_W, BLOCK_C
    )
    weights = _nine_weights(weight_ptr, offs_c, C, False)
    bias = tl.load(bias_ptr + offs_c, mask=offs_c < C, other=0.0).to(tl.float32)[None, :]
    _convolve(
        x_ptr, out_ptr, weights, bias, image, first, last, offs_w, offs_c, h, w,
        C, True, UP, BLOCK_W, BLOCK_C,
    )  # fmt: skip


@triton.jit(do_not_specialize=["h", "w", "rows"])
def _depthwise_conv_gelu_bwd_kernel(
    x_ptr, weight_ptr, bias_ptr, upstream_ptr, dz_ptr, sums_ptr, h, w, rows,
    C: tl.constexpr, SUMS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
    UP: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution's result, which is computed again, and sums for the weights'.

    Args:
        x_ptr: ``[N, h, w, C]``, contiguous.
        weight_ptr: ``[C, 9]``.
        bias_ptr: ``[C]``.
        upstream_ptr: ``[N, h, w, C]``, contiguous.
        dz_ptr: ``[N, h, w, C]``, written.
        sums_ptr: ``[parts, SUMS, C]`` float32, written: of each weight, of the bias, and of the
            gradient of x.
        h: rows.
        w: columns.
        rows: rows of a program.
        C: channels.
        SUMS: 10, or 11 with that of x.
        BLOCK_W: columns of a program.
        BLOCK_C: channels of a program.
        UP: the interpreter's bfloat16.
    """
    image, first, last, offs_w, offs_c, part = _place(
        tl.program_id(0), h, w, rows, C, BLOCK_W, BLOCK_C
    )
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = _nine_weights(weight_ptr, offs_c, C, False)
    bias = tl.load(bias_ptr + offs_c, mask=offs_c < C, other=0.0).to(tl.float32)[None, :]
    left, middle, right = _masks(offs_w, offs_c, w, C, BLOCK_C)
    place = (image * h + first) * w * C + (offs_w[:, None] * C + offs_c[None, :])
    x_ptrs, up_ptrs, dz_ptrs = x_ptr + place, upstream_ptr + place, dz_ptr + place
    x0, x1, x2 = _three_columns(x_ptrs - w * C, left, middle, right, first > 0, C)
    x3, x4, x5 = _three_columns(x_ptrs, left, middle, right, first < h, C)
    x0, x1, x2 = x0.to(tl.float32), x1.to(tl.float32), x2.to(tl.float32)
    x3, x4, x5 = x3.to(tl.float32), x4.to(tl.float32), x5.to(tl.float32)
    x_ptrs += w * C
    a, b, c = _three_columns(x_ptrs, left, middle, right, first + 1 < h, C)
    upstream = tl.load(up_ptrs, mask=middle, other=0.0)
    zero = tl.zeros((BLOCK_W, BLOCK_C), dtype=tl.float32)
    s0, s1, s2, s3, s4 = zero, zero, zero, zero, zero
    s5, s6, s7, s8, s9 = zero, zero, zero, zero, zero
    top, dz = zero, zero
    for r in range(first, last):
        x_ptrs += w * C
        up_ptrs += w * C
        below = r + 2 < tl.minimum(last + 1, h)
        next_a, next_b, next_c = _three_columns(x_ptrs, left, middle, right, below, C)
        next_up = tl.load(up_ptrs, mask=middle & (r + 1 < last), other=0.0)
        x6, x7, x8 = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32)
        z = bias + w0 * x0 + w1 * x1 + w2 * x2
        z += w3 * x3 + w4 * x4 + w5 * x5
        z += w6 * x6 + w7 * x7 + w8 * x8
        # zero outside the image, as the upstream is
        dz = upstream.to(tl.float32) * gelu_slope(z, UP)
        tl.store(dz_ptrs, rounded_to(dz, dz_ptr.dtype.element_ty, UP), mask=middle)
        s0, s1, s2 = s0 + dz * x0, s1 + dz * x1, s2 + dz * x2
        s3, s4, s5 = s3 + dz * x3, s4 + dz * x4, s5 + dz * x5
        s6, s7, s8 = s6 + dz * x6, s7 + dz * x7, s8 + dz * x8
        s9 += dz
        if SUMS > 10:
            top += tl.where(r == 0, dz, 0.0)
        dz_ptrs += w * C
        x0, x1, x2, x3, x4, x5 = x3, x4, x5, x6, x7, x8
        a, b, c, upstream = next_a, next_b, next_c, next_up
    sums = (s0, s1, s2, s3, s4, s5, s6, s7, s8, s9)
    sums_ptrs = sums_ptr + part.to(tl.int64) * (SUMS * C) + offs_c
    for tap in tl.static_range(10):
        tl.store(sums_ptrs + tap * C, tl.sum(sums[tap], 0), mask=offs_c < C)
    if SUMS > 10:
        # dx gets dz times each weight whose neighbour is in the image
        above = tl.where(left, w0, 0.0) + w1 + tl.where(right, w2, 0.0)
        here = tl.where(left, w3, 0.0) + w4 + tl.where(right, w5, 0.0)
        below = tl.where(left, w6, 0.0) + w7 + tl.where(right, w8, 0.0)
        bottom = tl.where(last == h, dz, 0.0)
        of_x = (s9 - top) * above + s9 * here + (s9 - bottom) * below
        tl.store(sums_ptrs + 10 * C, tl.sum(of_x, 0), mask=offs_c < C)


@triton.jit
def _add_up(
    sums_ptr, dweight_ptr, dbias_ptr, of_x_ptr, parts, block,
    C: tl.constexpr, SUMS: tl.constexpr, UP: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of some weights and biases from the sums ``[parts, SUMS, C]``, in a fixed order."""
    offs_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_S, BLOCK_N), dtype=tl.float32)
    for start in range(0, parts, BLOCK_S):
        offs_s = start + tl.arange(0, BLOCK_S)
        mask = (offs_s < parts)[:, None] & (offs_n < SUMS * C)[None, :]
        ptrs = sums_ptr + offs_s.to(tl.int64)[:, None] * (SUMS * C) + offs_n[None, :]
        total += tl.load(ptrs, mask=mask, other=0.0)
    found = tl.sum(total, 0)
    tap, channel = offs_n // C, offs_n % C
    dweight = rounded_to(found, dweight_ptr.dtype.element_ty, UP)
    tl.store(dweight_ptr + channel * 9 + tap, dweight, mask=tap < 9)
    dbias = rounded_to(found, dbias_ptr.dtype.element_ty, UP)
    tl.store(dbias_ptr + channel, dbias, mask=tap == 9)
    if SUMS > 10:
        of_x = rounded_to(found, of_x_ptr.dtype.element_ty, UP)
        tl.store(of_x_ptr + channel, of_x, mask=tap == 10)


@triton.jit(do_not_specialize=["parts", "first_program", "h", "w", "rows"])
def _depthwise_conv_gelu_input_kernel(
    dz_ptr, weight_ptr, dx_ptr, sums_ptr, dweight_ptr, dbias_ptr, of_x_ptr,
    parts, first_program, h, w, rows,
    C: tl.constexpr, SUMS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradient of the tokens, a gather of nine neighbours; the first programs add the sums up.

    Args:
        dz_ptr: ``[N, h, w, C]``, of the backward kernel.
        weight_ptr: ``[C, 9]``.
        dx_ptr: ``[N, h, w, C]``, written.
        sums_ptr: ``[parts, SUMS, C]`` float32, of the backward kernel.
        dweight_ptr: ``[C, 9]``, written.
        dbias_ptr: ``[C]``, written.
        of_x_ptr: ``[C]``, written if there is an eleventh sum.
        parts: programs of the backward kernel that share their channels.
        first_program: the first one that does not add up.
        h: rows.
        w: columns.
        rows: rows of a program.
        C: channels.
        SUMS: 10 or 11.
        BLOCK_W: columns of a program.
        BLOCK_C: channels of a program.
        BLOCK_S: parts of a tile.
        BLOCK_N: sums of a program.
        UP: the interpreter's bfloat16.
    """
    pid = tl.program_id(0)
    if pid < first_program:
        _add_up(
            sums_ptr, dweight_ptr, dbias_ptr, of_x_ptr, parts, pid, C, SUMS, UP, BLOCK_S, BLOCK_N
        )
    else:
        image, first, last, offs_w, offs_c, _ = _place(
            pid - first_program, h, w, rows, C, BLOCK_W, BLOCK_C
        )
        weights = _nine_weights(weight_ptr, offs_c, C, True)
        _convolve(
            dz_ptr, dx_ptr, weights, 0.0, image, first, last, offs_w, offs_c, h, w,
            C, False, UP, BLOCK_W, BLOCK_C,
        )  # fmt: skip
