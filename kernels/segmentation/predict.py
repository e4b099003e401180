"""Segmentation from low-resolution logits: upsampling inside the kernel, argmax and confusion.

    z = bilinear(logits, f h x f w),   prediction = argmax_k z_k,   counts[label, prediction] += 1

The full-resolution logits never exist: a lane holds the best class so far of the pixels between
four logits (see :mod:`.bilinear`). The predictions, a byte per pixel, are counted by a second
kernel, whose programs leave a histogram each. The factor f is 1, 2, 4 or 8, the same in both
directions; the reference serves other sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..common.device import on_device_of
from ..common.switch import DEVICES, runs_on
from ..reference.segmentation import check_labels, check_logits, check_size
from .bilinear import (
    LANES,
    ROWS,
    corner_offsets,
    dual_cells,
    interpolate,
    launch_grid,
    load_corners,
    pixel_offsets,
    served_factor,
)

_PROGRAMS = 512  # of the counting kernel, shared by the bands of rows of the matrix
_BINS = 1024  # cells of a band: all of 32 classes, 4 rows of 256
_BLOCK = 1024


@triton.jit(do_not_specialize=["batch", "K", "h", "w"])
def _upsample_argmax_kernel(
    logits_ptr, out_ptr, batch, K, h, w,
    FACTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Most likely class of every pixel between four logits.

    Args:
        logits_ptr: ``[B, K, h, w]``, contiguous.
        out_ptr: ``[B, H, W]`` uint8, written.
        batch: B.
        K: classes.
        h: rows of the logits.
        w: columns of the logits.
        FACTOR: the upsampling factor f.
        ROWS: rows of a cell that a lane works on.
        BLOCK: cells of a program.
        WIDE: offsets need 64 bits.
    """
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    sample, i, j, y, x, inside, lower, right = dual_cells(
        cell, tl.program_id(1), batch, h, w, FACTOR, ROWS
    )
    o00, o01, o10, o11 = corner_offsets(sample, i, j, batch, K, h, w, WIDE)
    best = tl.full((ROWS, FACTOR, BLOCK), float("-inf"), tl.float32)
    choice = tl.zeros((ROWS, FACTOR, BLOCK), tl.int32)
    for k in range(K):
        x00, x01, x10, x11 = load_corners(logits_ptr, o00, o01, o10, o11)
        logit = interpolate(x00, x01, x10, x11, 1.0, lower, right)
        choice = tl.where(logit > best, k, choice)
        best = tl.maximum(logit, best)
        logits_ptr += h * w
    out_ptrs = out_ptr + pixel_offsets(sample, y, x, h, w, FACTOR, WIDE)
    tl.store(out_ptrs, choice.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["size", "K", "rows"])
def _confusion_kernel(
    predictions_ptr, labels_ptr, partial_ptr, size, K, rows, BINS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Counts of some rows of the matrix in a share of the pixels.

    Args:
        predictions_ptr: ``[size]`` uint8.
        labels_ptr: ``[size]`` integers.
        partial_ptr: ``[programs, K, K]`` int32, written.
        size: pixels.
        K: classes.
        rows: rows of the matrix that a program counts.
        BINS: cells of these rows, a power of two that is at least their number.
        BLOCK: pixels of a tile.
    """
    pid, programs = tl.program_id(0), tl.num_programs(0)
    first = tl.program_id(1) * rows
    last = tl.minimum(first + rows, K)
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(pid * BLOCK, size, programs * BLOCK):
        offs = start + tl.arange(0, BLOCK)
        label = tl.load(labels_ptr + offs, mask=offs < size, other=0)
        prediction = tl.load(predictions_ptr + offs, mask=offs < size, other=0).to(tl.int32)
        there = (offs < size) & (label >= first) & (label < last)
        cell = (label.to(tl.int32) - first) * K + prediction
        counts += tl.histogram(tl.where(there, cell, 0), BINS, mask=there)
    bins = tl.arange(0, BINS)
    tl.store(partial_ptr + (pid * K + first) * K + bins, counts, mask=bins < (last - first) * K)


@triton.jit(do_not_specialize=["cells", "programs"])
def _confusion_sum_kernel(
    partial_ptr, counts_ptr, cells, programs, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """Sum of the programs' counts.

    Args:
        partial_ptr: ``[programs, cells]`` int32.
        counts_ptr: ``[cells]`` int64, written.
        cells: cells of the matrix.
        programs: programs that have counted.
        BLOCK: cells of a tile.
        BLOCK_R: programs of a tile.
    """
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, programs, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        mask = (rows < programs)[:, None] & (offs < cells)[None, :]
        ptrs = partial_ptr + rows[:, None] * cells + offs[None, :]
        counts += tl.sum(tl.load(ptrs, mask=mask, other=0), 0)
    tl.store(counts_ptr + offs, counts, mask=offs < cells)


@torch.library.custom_op("fastseg::upsample_argmax", mutates_args=(), device_types=DEVICES)
def _upsample_argmax(logits: Tensor, factor: int) -> Tensor:
    logits = logits.contiguous()  # channels-last would cost a cache line per lane and class
    b, k, h, w = logits.shape
    out = logits.new_empty((b, h * factor, w * factor), dtype=torch.uint8)
    with on_device_of(logits):
        _upsample_argmax_kernel[launch_grid(logits, factor)](
            logits, out, b, k, h, w, FACTOR=factor, ROWS=ROWS[factor], BLOCK=LANES,
            WIDE=logits.numel() >= 2**31, num_warps=1,
        )  # fmt: skip
    return out


@_upsample_argmax.register_fake
def _(logits: Tensor, factor: int) -> Tensor:
    b, _, h, w = logits.shape
    return logits.new_empty((b, h * factor, w * factor), dtype=torch.uint8)


@torch.library.custom_op("fastseg::confusion", mutates_args=(), device_types=DEVICES)
def _confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    labels = labels.contiguous()
    size, k = labels.numel(), num_classes
    rows = _BINS // k
    bands = triton.cdiv(k, rows)
    programs = min(max(_PROGRAMS // bands, 8), triton.cdiv(size, _BLOCK))
    partial = labels.new_empty((programs, k, k), dtype=torch.int32)
    counts = labels.new_empty((k, k), dtype=torch.int64)
    with on_device_of(labels):
        _confusion_kernel[(programs, bands)](
            predictions, labels, partial, size, k, rows, BINS=_BINS, BLOCK=_BLOCK, num_warps=4
        )
        _confusion_sum_kernel[(triton.cdiv(k * k, 64),)](
            partial, counts, k * k, programs, BLOCK=64, BLOCK_R=32, num_warps=4
        )
    return counts


@_confusion.register_fake
def _(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    return labels.new_empty((num_classes, num_classes), dtype=torch.int64)


def upsample_argmax(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Most likely class at each pixel of the bilinearly upsampled logits (no gradient).

    Args:
        logits: ``[B, K, h, w]``, any float dtype and strides, K at most 256.
        size: ``(H, W)`` of the result; the kernel serves 1, 2, 4 and 8 times ``(h, w)``.

    Returns:
        ``[B, H, W]`` uint8; the first of equally likely classes, and for a pixel with NaN logits
        any class. Pixels whose two best logits differ by rounding may differ from the reference.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    check_logits(logits)
    check_size(logits, size)
    factor = served_factor(logits, size)
    if factor is None or not runs_on(logits):
        return reference.segmentation.upsample_argmax(logits, size)
    out: Tensor = _upsample_argmax(logits.detach(), factor)
    return out


def upsample_confusion(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix of the upsampled prediction; deterministic, without waiting for the device.

        counts[i, j] = #{pixels with labels = i and upsample_argmax = j}

    Args:
        logits: ``[B, K, h, w]``, any float dtype and strides, K at most 256.
        labels: ``[B, H, W]`` integers; pixels outside ``[0, K)``, such as 255, are not counted.
        num_classes: K.

    Returns:
        ``[K, K]`` int64, additive over batches and ranks.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    check_labels(logits, labels)
    factor = served_factor(logits, labels.shape[-2:])
    if factor is None or not runs_on(logits) or logits.shape[1] != num_classes:
        return reference.segmentation.upsample_confusion(logits, labels, num_classes)
    check_size(logits, labels.shape[-2:])
    counts: Tensor = _confusion(_upsample_argmax(logits.detach(), factor), labels, num_classes)
    return counts
