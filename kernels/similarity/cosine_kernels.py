"""The kernels of prototype similarity that go from pixel to pixel: cosines, and the gradient.

Their programs take several modalities if these have few channels: the labels are looked up once
for them.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.rounding import rounded_to
from ..common.tiles import Maps, of_map, sample_labels


class Cosines(NamedTuple):
    """Arguments of the forward kernel; every field is a tuple with an entry for each map.

    Attributes:
        together: number of modalities that a program takes.
        out: first element of the map's prototypes.
        place: first element of its similarities.
        keep: 1 where the inverse lengths of its pixels are wanted, else 0.
    """

    together: Any
    out: Any
    place: Any
    keep: Any


class Gradients(NamedTuple):
    """Arguments of the backward kernel; every field is a tuple with an entry for each map.

    Attributes:
        together: number of modalities that a program takes.
        out: first element of the map's prototypes.
        place: first element of its similarities.
        grads_ptr: gradient of its features, contiguous.
    """

    together: Any
    out: Any
    place: Any
    grads_ptr: Any


# the square of the shortest vector that has a direction
_LEAST_SQUARE = tl.constexpr(1e-16)


@triton.jit
def _inverse_length(squares):
    """One over the length, zero for what has no direction."""
    return tl.where(squares > _LEAST_SQUARE, tl.rsqrt(tl.maximum(squares, _LEAST_SQUARE)), 0.0)


@triton.jit
def _limit_of(height, width, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr):
    """Pixels of a map; where they are contiguous, VEC divides them."""
    return height * width if CHANNELS_LAST else height * width // VEC * VEC


@triton.jit
def _steps(x_ptr, b, begin, stride_b, stride_x, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr):
    """The first pixel of a program, and the steps from pixel to pixel and channel to channel."""
    # divided and multiplied back, to tell the compiler that VEC divides
    step = stride_x // VEC * VEC
    x_ptr += b * (stride_b // VEC * VEC)
    if CHANNELS_LAST:
        x_ptr += begin.to(tl.int64) * step
        pixel_step, channel_step = step, 1
    else:
        x_ptr += begin
        pixel_step, channel_step = 1, step
    x_ptr = tl.multiple_of(x_ptr, VEC * x_ptr.dtype.element_ty.primitive_bitwidth // 8)
    return x_ptr, pixel_step, channel_step


@triton.jit
def _prototype_similarity_fwd_kernel(
    maps, cosines, labels_ptr, prototypes_ptr, maps_ptr, inverses_ptr, B, H, W, label_stride_b,
    label_stride_h, label_stride_w, K,
    STRIDED: tl.constexpr, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Cosine of every pixel with the prototype of its class.

    Args:
        maps: :class:`Maps`, a tile for some modalities.
        cosines: :class:`Cosines`.
        labels_ptr: ``[B, H, W]`` integers.
        prototypes_ptr: float32, ``[M, B, K, C]`` of every map in a row.
        maps_ptr: float32, ``[M, B, h, w]`` of every map in a row, written.
        inverses_ptr: float32, one over the length of each pixel of the maps that keep it, written.
        B: samples.
        H: rows of the label map.
        W: columns of the label map.
        label_stride_b: elements from sample to sample of the label map.
        label_stride_h: elements from row to row.
        label_stride_w: elements from column to column.
        K: classes.
        STRIDED: H and W are whole multiples of every map's height and width.
        CHANNELS_LAST: the channels of the features are contiguous, else the pixels.
        VEC: a power of two that divides all offsets, in elements.
        BLOCK_P: pixels of a tile.
        BLOCK_C: channels of a tile.
    """
    pid = tl.program_id(0)
    at = Maps(*of_map(maps.start, maps, pid))
    to = Cosines(*of_map(maps.start, cosines, pid))
    C, height, width, out = at.C, at.height, at.width, to.out
    first_m = ((pid - at.start) % at.tiles * to.together).to(tl.int64)
    modalities = tl.minimum(at.columns // C - first_m, to.together).to(tl.int32)
    rest = (pid - at.start) // at.tiles
    b = (rest % B).to(tl.int64)
    begin = rest // B * BLOCK_P
    offs_j = tl.arange(0, BLOCK_P)
    offs_p = begin + offs_j
    label = sample_labels(labels_ptr + b * label_stride_b, offs_p, height, width, H, W,
                          label_stride_h, label_stride_w, K, STRIDED)  # fmt: skip
    seen = label >= 0
    in_p = offs_p < _limit_of(height, width, CHANNELS_LAST, VEC)
    x_ptr, pixel_step, channel_step = _steps(
        at.x_ptr, b, begin, at.stride_b, at.stride_x, CHANNELS_LAST, VEC
    )
    if CHANNELS_LAST:
        C, out = C // VEC * VEC, out // VEC * VEC
    rows = tl.maximum(label, 0) * C
    for i in range(0, modalities):
        m = first_m + i
        of_m = m * B + b
        of_m_ptr = x_ptr + m * (at.stride_m // VEC * VEC)
        own_ptr = prototypes_ptr + (out + of_m * K * C)
        product = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        squares = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        own_squares = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        for first in range(0, C, BLOCK_C):
            offs_c = first + tl.arange(0, BLOCK_C)
            offs_n = offs_c.to(tl.int64) * channel_step
            in_c = offs_c < C
            x = tl.load(of_m_ptr + ((offs_j * pixel_step)[:, None] + offs_n[None, :]),
                        mask=in_p[:, None] & in_c[None, :], other=0.0).to(tl.float32)  # fmt: skip
            own = tl.load(own_ptr + (rows[:, None] + offs_c[None, :]),
                          mask=seen[:, None] & in_c[None, :], other=0.0)  # fmt: skip
            product += x * own
            squares += x * x
            own_squares += own * own
        inverse = _inverse_length(tl.sum(squares, axis=1))
        cosine = tl.sum(product, axis=1) * inverse
        cosine *= _inverse_length(tl.sum(own_squares, axis=1))
        # rounding may leave the interval
        cosine = tl.where(seen, tl.minimum(tl.maximum(cosine, -1.0), 1.0), 0.0)
        offs = to.place + of_m * (height * width) + offs_p
        tl.store(maps_ptr + offs, cosine, mask=offs_p < height * width)
        tl.store(inverses_ptr + offs, inverse, mask=offs_p < height * width * to.keep)


@triton.jit
def _prototype_similarity_bwd_kernel(
    maps, gradients, labels_ptr, grad_ptr, scale_ptr, maps_ptr, inverses_ptr, directions_ptr,
    shares_ptr, B, H, W, label_stride_b, label_stride_h, label_stride_w, K,
    STRIDED: tl.constexpr, CHANNELS_LAST: tl.constexpr, VEC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHARES: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradient of the features: through the pixel itself and through the mean that it is part of.

    Args:
        maps: :class:`Maps`, a tile for some modalities.
        gradients: :class:`Gradients`.
        labels_ptr: ``[B, H, W]`` integers.
        grad_ptr: float32, gradient of the similarities.
        scale_ptr: one number, a factor of the gradient, if there is one.
        maps_ptr: float32, the similarities.
        inverses_ptr: float32, one over the length of each pixel.
        directions_ptr: float32, prototypes of length one.
        shares_ptr: float32, a pixel's share of the gradient of its class's mean.
        B: samples.
        H: rows of the label map.
        W: columns of the label map.
        label_stride_b: elements from sample to sample of the label map.
        label_stride_h: elements from row to row.
        label_stride_w: elements from column to column.
        K: classes.
        STRIDED: H and W are whole multiples of every map's height and width.
        CHANNELS_LAST: the channels of the features are contiguous, else the pixels.
        VEC: a power of two that divides all offsets, in elements.
        BLOCK_P: pixels of a tile.
        BLOCK_C: channels of a tile.
        HAS_SCALE: there is a scale.
        HAS_SHARES: the gradient goes through the means, too.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    pid = tl.program_id(0)
    at = Maps(*of_map(maps.start, maps, pid))
    to = Gradients(*of_map(maps.start, gradients, pid))
    C, height, width, out = at.C, at.height, at.width, to.out
    first_m = ((pid - at.start) % at.tiles * to.together).to(tl.int64)
    modalities = tl.minimum(at.columns // C - first_m, to.together).to(tl.int32)
    rest = (pid - at.start) // at.tiles
    b = (rest % B).to(tl.int64)
    begin = rest // B * BLOCK_P
    offs_j = tl.arange(0, BLOCK_P)
    offs_p = begin + offs_j
    label = sample_labels(labels_ptr + b * label_stride_b, offs_p, height, width, H, W,
                          label_stride_h, label_stride_w, K, STRIDED)  # fmt: skip
    seen = label >= 0
    limit = _limit_of(height, width, CHANNELS_LAST, VEC)
    in_p = offs_p < limit
    x_ptr, pixel_step, channel_step = _steps(
        at.x_ptr, b, begin, at.stride_b, at.stride_x, CHANNELS_LAST, VEC
    )
    if CHANNELS_LAST:
        C, out = C // VEC * VEC, out // VEC * VEC
    # gradients are contiguous
    grads_ptr, grad_pixel_step, grad_channel_step = _steps(
        to.grads_ptr, b, begin, C * limit, C if CHANNELS_LAST else limit, CHANNELS_LAST, VEC
    )
    rows = tl.maximum(label, 0) * C
    scale = tl.load(scale_ptr).to(tl.float32) if HAS_SCALE else 1.0
    for i in range(0, modalities):
        m = first_m + i
        of_m = m * B + b
        of_m_ptr = x_ptr + m * (at.stride_m // VEC * VEC)
        of_m_grads_ptr = grads_ptr + m * B * (C * limit // VEC * VEC)
        table = out + of_m * K * C
        pixels = to.place + of_m * (height * width) + offs_p
        inverse = tl.load(inverses_ptr + pixels, mask=seen, other=0.0)
        along = tl.load(grad_ptr + pixels, mask=seen, other=0.0) * inverse * scale
        back = along * tl.load(maps_ptr + pixels, mask=seen, other=0.0) * inverse
        for first in range(0, C, BLOCK_C):
            offs_c = first + tl.arange(0, BLOCK_C)
            wide_c = offs_c.to(tl.int64)
            in_c = offs_c < C
            mask = in_p[:, None] & in_c[None, :]
            x = tl.load(
                of_m_ptr + ((offs_j * pixel_step)[:, None] + (wide_c * channel_step)[None, :]),
                mask=mask, other=0.0,
            ).to(tl.float32)  # fmt: skip
            offs = table + (rows[:, None] + offs_c[None, :])
            own = seen[:, None] & in_c[None, :]
            grad = along[:, None] * tl.load(directions_ptr + offs, mask=own, other=0.0)
            grad -= back[:, None] * x
            if HAS_SHARES:
                grad += scale * tl.load(shares_ptr + offs, mask=own, other=0.0)
            # a pixel of no class has none, whatever its feature is
            grad = tl.where(seen[:, None], grad, 0.0)
            offs = (offs_j * grad_pixel_step)[:, None] + (wide_c * grad_channel_step)[None, :]
            tl.store(of_m_grads_ptr + offs, rounded_to(grad, grads_ptr.dtype.element_ty, UP),
                     mask=mask)  # fmt: skip
