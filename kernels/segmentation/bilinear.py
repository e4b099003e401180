"""The geometry of bilinear upsampling by an integer factor, as the kernels share it.

Between four neighbouring logits lie f x f output pixels, a *dual cell*; a sample of h x w logits
has ``(h + 1) x (w + 1)`` of them, those at the border with less than four neighbours and partly
outside the image. A lane of a kernel owns one cell: it loads the four corners of a class once for
all pixels of the cell, keeps what it knows of each pixel in registers and loops over the classes.
So nothing of the full resolution has a class axis, and lanes exchange nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

LANES = 32  # cells of a program, which is one warp
ROWS = {1: 1, 2: 2, 4: 4, 8: 2}  # rows of a cell that one lane works on, by factor


@triton.jit
def dual_cells(cell, group, batch, h, w, FACTOR: tl.constexpr, ROWS: tl.constexpr):
    """Position of cells and of some rows of their pixels, all ``[rows, columns, cells]``.

    Returns the sample and the row and column of the upper left corner (-1 above or left of the
    image), row and column of the pixels, whether they are inside, and their weights of the lower
    and of the right corners: 1 and 0 at the border, so that only corners inside have a weight.
    """
    sample = cell // ((h + 1) * (w + 1))
    i = cell % ((h + 1) * (w + 1)) // (w + 1) - 1
    j = cell % (w + 1) - 1
    a = group * ROWS + tl.arange(0, ROWS)[:, None, None]
    c = tl.arange(0, FACTOR)[None, :, None]
    y = i * FACTOR + FACTOR // 2 + a
    x = j * FACTOR + FACTOR // 2 + c
    inside = (sample < batch) & (y >= 0) & (y < h * FACTOR) & (x >= 0) & (x < w * FACTOR)
    half: tl.constexpr = 0.5 if FACTOR > 1 else 0.0
    lower = tl.where(i < 0, 1.0, tl.where(i == h - 1, 0.0, (a + half) / FACTOR))
    right = tl.where(j < 0, 1.0, tl.where(j == w - 1, 0.0, (c + half) / FACTOR))
    return sample, i, j, y, x, inside, lower, right


@triton.jit
def corner_offsets(sample, i, j, batch, K, h, w, WIDE: tl.constexpr):
    """Offsets of the four corners in class 0 of ``[B, K, h, w]``, always inside the tensor."""
    sample = tl.minimum(sample, batch - 1)
    if WIDE:
        sample = sample.to(tl.int64)
    first = sample * K * h
    upper = (first + tl.maximum(i, 0)) * w
    lower = (first + tl.minimum(i + 1, h - 1)) * w
    left = tl.maximum(j, 0)
    right = tl.minimum(j + 1, w - 1)
    return upper + left, upper + right, lower + left, lower + right


@triton.jit
def pixel_offsets(sample, y, x, h, w, FACTOR: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of pixels in ``[B, H, W]``."""
    row = sample * (h * FACTOR) + y
    if WIDE:
        row = row.to(tl.int64)
    return row * (w * FACTOR) + x


@triton.jit
def load_labels(
    labels_ptr, sample, i, j, group, batch, K, h, w, ignore_index,
    FACTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Classes of the pixels as floats, -1 where there is none.

    Floats, for the compiler widens integers that are compared with the class of a loop. Loaded one
    pixel of all cells at a time: a single load would be spread over lanes for wider accesses, and
    what it brings, or worse, each comparison with it, moved into place through shared memory.
    """
    label = tl.full((ROWS, FACTOR, BLOCK), -1.0, tl.float32)
    rows = tl.arange(0, ROWS)[:, None, None]
    columns = tl.arange(0, FACTOR)[None, :, None]
    for a in tl.static_range(ROWS):
        y = i * FACTOR + (FACTOR // 2 + group * ROWS + a)
        row_inside = (sample < batch) & (y >= 0) & (y < h * FACTOR)
        row_ptrs = labels_ptr + pixel_offsets(sample, y, j * FACTOR, h, w, FACTOR, WIDE)
        for c in tl.static_range(FACTOR // 2, FACTOR // 2 + FACTOR):
            x = j * FACTOR + c
            inside = row_inside & (x >= 0) & (x < w * FACTOR)
            one = tl.load(row_ptrs + c, mask=inside, other=0)
            valid = inside & (one != ignore_index) & (one >= 0) & (one < K)
            one = tl.where(valid, one.to(tl.float32), -1.0)
            label = tl.where((rows == a) & (columns == c - FACTOR // 2), one, label)
    return label


@triton.jit
def load_corners(x_ptr, o00, o01, o10, o11):
    """The four corners of a class, upper left, upper right, lower left, lower right."""
    x00 = tl.load(x_ptr + o00).to(tl.float32)
    x01 = tl.load(x_ptr + o01).to(tl.float32)
    x10 = tl.load(x_ptr + o10).to(tl.float32)
    x11 = tl.load(x_ptr + o11).to(tl.float32)
    return x00, x01, x10, x11


@triton.jit
def interpolate(x00, x01, x10, x11, scale, lower, right):
    """``scale`` times the pixels between four corners.

    The scale is applied to the corners: four products instead of one per pixel.
    """
    x00, x01, x10, x11 = x00 * scale, x01 * scale, x10 * scale, x11 * scale
    above = x00 + right * (x01 - x00)
    below = x10 + right * (x11 - x10)
    return above + lower * (below - above)


def served_factor(logits: Tensor, size: Sequence[int]) -> int | None:
    """The upsampling factor if the kernels have it, None where the reference has to serve."""
    b, _, h, w = logits.shape
    for factor in ROWS:
        if size[0] == h * factor and size[1] == w * factor:
            # cells and pixels are counted in 32 bits, elements of the logits in 64 if they have to
            few = b * (h + 1) * (w + 1) * factor**2 < 2**31 - 2**16
            return factor if few and b > 0 else None
    return None


def cell_blocks(logits: Tensor) -> int:
    """Programs of ``LANES`` cells."""
    b, _, h, w = logits.shape
    return (b * (h + 1) * (w + 1) + LANES - 1) // LANES


def launch_grid(logits: Tensor, factor: int) -> tuple[int, int]:
    """Programs: blocks of cells, groups of rows of their pixels."""
    return cell_blocks(logits), factor // ROWS[factor]
