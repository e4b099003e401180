"""The corners of the dual cells (see :mod:`.bilinear`) by class, as the loss kernels read them.

**Classes apart in memory** (``[B, K, h, w]`` contiguous): neighbouring lanes read neighbouring
logits of a class, and the next class is loaded while the current one is computed with.

**Classes side by side** (channels-last): lanes that went along the classes of their own corners
would touch a cache line each for one class. So they read CHUNK classes of each corner side by side,
which are then brought to the lanes of the cells through shared memory or by shuffles. A sector of
32 bytes holds the classes of several chunks: it comes with the first of them, the others find it in
the cache. That takes the place of loading ahead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .bilinear import corner_offsets

NO_CLASS = tl.constexpr(-1e20)  # a logit whose exponential is zero at any temperature in use


@triton.jit
def corners_of(sample, i, j, batch, K, h, w, LAST: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of the four corners in class 0, always inside, and elements from class to class."""
    if LAST:
        o00, o01, o10, o11 = corner_offsets(sample, i, j, batch, 1, h, w, WIDE)
        corners = (o00 * K, o01 * K, o10 * K, o11 * K)
        plane = 1
    else:
        corners = corner_offsets(sample, i, j, batch, K, h, w, WIDE)
        plane = tl.cast(h, tl.int64) * w if WIDE else h * w
    return corners, plane


@triton.jit
def load_class(x_ptr, corners):
    """The four corners of a class as they are: what converts them waits until they are there."""
    o00, o01, o10, o11 = corners
    return tl.load(x_ptr + o00), tl.load(x_ptr + o01), tl.load(x_ptr + o10), tl.load(x_ptr + o11)


@triton.jit
def next_classes(ahead, x_ptr, corners, k, K, plane, LAST: tl.constexpr, CHUNK: tl.constexpr):
    """Corners of the CHUNK classes from ``k``, and those of the class after if CHUNK is 1.

    Args:
        ahead: of the call before; at first the corners of class 0 if CHUNK is 1, else anything.
        x_ptr: the logits.
        corners: offsets of the four corners in class 0.
        k: the first class, a multiple of CHUNK.
        K: classes.
        plane: elements from class to class.
        LAST: the classes are side by side: plane is 1.
        CHUNK: 1, 2 or 4; more than 1 if LAST.

    Returns:
        For each class its four corners, of the last classes of a chunk possibly those of no class,
        and what the next call needs.
    """
    if CHUNK == 1:
        found = (ahead,)
        ahead = load_class(x_ptr + tl.minimum(k + 1, K - 1) * plane, corners)
    elif LAST:
        o00, o01, o10, o11 = corners
        # all loads before the first exchange, which waits for what it moves
        x00, x01 = _side_by_side(x_ptr, o00, k, K, CHUNK), _side_by_side(x_ptr, o01, k, K, CHUNK)
        x10, x11 = _side_by_side(x_ptr, o10, k, K, CHUNK), _side_by_side(x_ptr, o11, k, K, CHUNK)
        x00, x01, x10, x11 = _apart(x00), _apart(x01), _apart(x10), _apart(x11)
        found = ()  # type: ignore[assignment]
        for c in tl.static_range(CHUNK):
            found = found + ((x00[c], x01[c], x10[c], x11[c]),)  # type: ignore[assignment]  # noqa: RUF005
    else:
        found = ()  # type: ignore[assignment]
        for c in tl.static_range(CHUNK):
            x = load_class(x_ptr + tl.minimum(k + c, K - 1) * plane, corners)
            found = found + (x,)  # type: ignore[assignment]  # noqa: RUF005
    return found, ahead


@triton.jit
def _side_by_side(x_ptr, offsets, k, K, CHUNK: tl.constexpr):
    """The CHUNK classes from ``k`` at a corner, zero beyond the last one."""
    offs_k = k + tl.arange(0, CHUNK)[None, None, None, :]
    return tl.load(x_ptr + (offsets[:, :, :, None] + offs_k), mask=offs_k < K, other=0.0)


@triton.jit
def _apart(x):
    """Two or four classes side by side, one after the other."""
    if x.shape[3] == 2:
        x0, x1 = tl.split(x)
        found = (x0, x1)
    else:
        even, odd = tl.split(tl.reshape(x, (1, 1, x.shape[2], 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        found = (x0, x1, x2, x3)  # type: ignore[assignment]
    return found


@triton.jit
def of_class(x, k, K, CHUNK: tl.constexpr):
    """The corners of class ``k`` as float32, ``NO_CLASS`` beyond the last one."""
    x00, x01, x10, x11 = x
    x00, x01 = x00.to(tl.float32), x01.to(tl.float32)
    x10, x11 = x10.to(tl.float32), x11.to(tl.float32)
    if CHUNK > 1:
        x00, x01 = tl.where(k < K, x00, NO_CLASS), tl.where(k < K, x01, NO_CLASS)
        x10, x11 = tl.where(k < K, x10, NO_CLASS), tl.where(k < K, x11, NO_CLASS)
    return x00, x01, x10, x11


@triton.jit
def widest(x_ptr, corners, K, plane, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """The maxima of the corners over the classes, and the largest less the smallest of a cell."""
    o00, o01, o10, o11 = corners
    WIDTH: tl.constexpr = 8 if LAST else 1
    m00 = tl.full((1, 1, BLOCK, WIDTH), float("-inf"), tl.float32)
    m01, m10, m11, lowest = m00, m00, m00, -m00
    for k in range(0, K, WIDTH):
        if LAST:
            offs_k = k + tl.arange(0, WIDTH)[None, None, None, :]
            x00 = _or_none(x_ptr, o00, offs_k, K)
            x01 = _or_none(x_ptr, o01, offs_k, K)
            x10 = _or_none(x_ptr, o10, offs_k, K)
            x11 = _or_none(x_ptr, o11, offs_k, K)
            least = tl.minimum(tl.minimum(x00, x01), tl.minimum(x10, x11))
            lowest = tl.where(offs_k < K, tl.minimum(lowest, least), lowest)
        else:
            x00, x01, x10, x11 = of_class(load_class(x_ptr, corners), k, K, 1)
            x00, x01 = x00[:, :, :, None], x01[:, :, :, None]
            x10, x11 = x10[:, :, :, None], x11[:, :, :, None]
            least = tl.minimum(tl.minimum(x00, x01), tl.minimum(x10, x11))
            lowest = tl.minimum(lowest, least)
            x_ptr += plane
        m00, m01 = tl.maximum(m00, x00), tl.maximum(m01, x01)
        m10, m11 = tl.maximum(m10, x10), tl.maximum(m11, x11)
    m00, m01, m10, m11 = tl.max(m00, 3), tl.max(m01, 3), tl.max(m10, 3), tl.max(m11, 3)
    highest = tl.maximum(tl.maximum(m00, m01), tl.maximum(m10, m11))
    return m00, m01, m10, m11, highest - tl.min(lowest, 3)


@triton.jit
def _or_none(x_ptr, offsets, offs_k, K):
    """Classes side by side as float32, minus infinity beyond the last one."""
    ptrs = x_ptr + (offsets[:, :, :, None] + offs_k)
    return tl.load(ptrs, mask=offs_k < K, other=float("-inf")).to(tl.float32)
