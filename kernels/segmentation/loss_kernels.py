"""The kernels of :mod:`.loss`, which says what they compute.

A lane owns a dual cell (see :mod:`.bilinear`) and loops over the classes, as :mod:`.corners` reads
them.

**Forward.** One pass adds up the exponentials of each pixel. They are shifted by the interpolated
maxima of the corners, which are at least the pixel's maximum; in the rare programs where they may
be so far above it that nothing would be left, another pass finds the exact one. It leaves a loss
and the logarithms of the sums per pixel, 4 bytes each, in the order of the cells.

**Backward.** The gradient of a kept pixel needs the number of kept pixels and, where the n largest
losses are searched, even which ones they are. A forward that emitted gradients would have to keep
one per loss and could not serve the search. So a second pass recomputes both softmaxes from the
saved logarithms and combines the two gradients in registers. That takes no exponential more, for a
gradient needs the sums of its pixel first, half the memory, and nothing where no gradient is
wanted. Each lane writes the share of its four corners, and a last kernel adds the four cells around
each logit: no atomics, a fixed order, deterministic.

The loss of a pixel whose true class has most of the probability, and the gradient at that class,
come from the sum of the other classes' exponentials. As differences of numbers near one they would
keep few digits of it.

All is in base 2: the corners are scaled by log2(e), or log2(e) / T for the teacher.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ..common.rounding import rounded_to
from ..common.series import exp_terms, log1p_near
from .bilinear import dual_cells, interpolate, load_labels
from .corners import corners_of, load_class, next_classes, of_class, widest

_LOG2E = tl.constexpr(math.log2(math.e))
_LN2 = tl.constexpr(math.log(2))
# sums of exponentials 2^-100 and above are normal numbers
_FARTHEST = tl.constexpr(100.0)
_MARK = tl.constexpr(2.0**64)
_NUMBERS = ["batch", "K", "h", "w", "num_cells", "limit", "inverse_t", "kl_scale", "ignore_index"]


@triton.jit
def _map_offsets(cell, group, num_cells,
                 FACTOR: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Offsets in a map ``[FACTOR, FACTOR, num_cells]``, and the size of one."""
    plane = num_cells
    if WIDE:
        plane = tl.cast(num_cells, tl.int64)
    a = group * ROWS + tl.arange(0, ROWS)[:, None, None]
    c = tl.arange(0, FACTOR)[None, :, None]
    return (a * FACTOR + c) * plane + cell, FACTOR * FACTOR * plane


@triton.jit
def _class_weight(weights_ptr, label, K):
    """Weight of each pixel's class, 1 where there is none.

    Looked up class by class: a load by label would be spread over lanes for wider accesses.
    """
    found = tl.full(label.shape, 1.0, tl.float32)
    for k in range(K):
        found = tl.where(label == k, tl.load(weights_ptr + k), found)
    return found


@triton.jit
def _shift(x_ptr, corners, K, plane, scale, magnify, lower, right, LAST: tl.constexpr,
           ROWS: tl.constexpr, FACTOR: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Numbers that are subtracted from the pixels before the exponential."""
    m00, m01, m10, m11, spread = widest(x_ptr, corners, K, plane, LAST, BLOCK)
    shift = interpolate(m00, m01, m10, m11, scale, lower, right)
    rounds = tl.where(tl.max(spread) * scale * magnify > _FARTHEST, K, 0)
    exact = tl.full((ROWS, FACTOR, BLOCK), float("-inf"), tl.float32)
    for _ in range(rounds):
        x00, x01, x10, x11 = of_class(load_class(x_ptr, corners), 0, K, 1)
        exact = tl.maximum(exact, interpolate(x00, x01, x10, x11, scale, lower, right))
        x_ptr += plane
    return tl.where(rounds > 0, exact, shift)


@triton.jit(do_not_specialize=_NUMBERS)
def _segmentation_loss_fwd_kernel(
    logits_ptr, teacher_ptr, labels_ptr, weights_ptr, maps_ptr, sums_ptr, counts_ptr,
    batch, K, h, w, num_cells, limit, inverse_t, ignore_index,
    HAS_TEACHER: tl.constexpr, TEMPERED: tl.constexpr, WEIGHTED: tl.constexpr, SAVE: tl.constexpr,
    LAST: tl.constexpr, TEACHER_LAST: tl.constexpr, CHUNK: tl.constexpr,
    FACTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Losses and logarithms of every pixel, and the sums of each program.

    Args:
        logits_ptr: ``[B, K, h, w]``, contiguous or channels-last.
        teacher_ptr: the same of the teacher, if there is one.
        labels_ptr: ``[B, H, W]`` integers, contiguous.
        weights_ptr: ``[K]`` float32, of the classes, if they are weighted.
        maps_ptr: ``[1 to 4, f, f, num_cells]`` float32, written: losses, -1 where there is no
            class, and the logarithms of the sums of the student, of the teacher, and of the student
            at the temperature.
        sums_ptr: ``[2, programs]`` float32, written: of the hard losses and of the divergence.
        counts_ptr: ``[2, programs]`` int32, written: valid and hard pixels.
        batch: B.
        K: classes.
        h: rows of the logits.
        w: columns of the logits.
        num_cells: cells of a map, in whole programs.
        limit: the loss above which a pixel is hard.
        inverse_t: one over the temperature.
        ignore_index: label of pixels without a class.
        HAS_TEACHER: there is a teacher.
        TEMPERED: the temperature of the divergence is not one.
        WEIGHTED: the classes have weights.
        LAST: the logits are channels-last.
        TEACHER_LAST: those of the teacher are.
        CHUNK: classes of a round of the loop: 1, 2 or 4, more than 1 where either is channels-last.
        SAVE: write the logarithms, for a backward.
        FACTOR: the upsampling factor f.
        ROWS: rows of a cell that a lane works on.
        BLOCK: cells of a program.
        WIDE: offsets need 64 bits.
    """
    pid, group = tl.program_id(0), tl.program_id(1)
    cell = pid * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    sample, i, j, _, _, inside, lower, right = dual_cells(cell, group, batch, h, w, FACTOR, ROWS)
    corners, plane = corners_of(sample, i, j, batch, K, h, w, LAST, WIDE)
    scale_t = _LOG2E * inverse_t
    magnify = tl.maximum(inverse_t, 1.0)
    shift = _shift(
        logits_ptr, corners, K, plane, _LOG2E, magnify, lower, right, LAST, ROWS, FACTOR, BLOCK
    )
    if HAS_TEACHER:
        corners_t, plane_t = corners_of(sample, i, j, batch, K, h, w, TEACHER_LAST, WIDE)
        shift_t = _shift(
            teacher_ptr, corners_t, K, plane_t, scale_t, 1.0, lower, right, TEACHER_LAST,
            ROWS, FACTOR, BLOCK,
        )  # fmt: skip
    label = load_labels(
        labels_ptr, sample, i, j, group, batch, K, h, w, ignore_index, FACTOR, ROWS, BLOCK, WIDE
    )

    others = tl.zeros((ROWS, FACTOR, BLOCK), tl.float32)
    sum_u, sum_t, cross = others, others, others
    # the mark of the true class, above every shifted logit, until the logit of that class is there
    own = (label + 2.0) * _MARK
    x = load_class(logits_ptr, corners)
    if HAS_TEACHER:
        y = load_class(teacher_ptr, corners_t)
    for first in range(0, K, CHUNK):
        xs, x = next_classes(x, logits_ptr, corners, first, K, plane, LAST, CHUNK)
        if HAS_TEACHER:
            ys, y = next_classes(y, teacher_ptr, corners_t, first, K, plane_t, TEACHER_LAST, CHUNK)
        for c in tl.static_range(CHUNK):
            k = first + c
            x00, x01, x10, x11 = of_class(xs[c], k, K, CHUNK)
            z = interpolate(x00, x01, x10, x11, _LOG2E, lower, right) - shift
            mine = own == (k + 2.0) * _MARK
            own = tl.where(mine, z, own)
            others += tl.where(mine, 0.0, tl.exp2(z))
            if HAS_TEACHER:
                y00, y01, y10, y11 = of_class(ys[c], k, K, CHUNK)
                t = interpolate(y00, y01, y10, y11, scale_t, lower, right) - shift_t
                if TEMPERED:
                    z = z * inverse_t
                    sum_u += tl.exp2(z)
                q = tl.exp2(t)
                sum_t += q
                cross += q * (t - z)

    valid = own != _MARK
    own = tl.where(valid, own, float("-inf"))
    mine = tl.exp2(own)  # zero where there is no class
    log_z = tl.log2(others + mine)
    certain = 2.0 * others < mine
    odds = tl.where(certain, others, 0.0) / tl.where(certain, mine, 1.0)
    loss = tl.where(certain, log1p_near(odds), (log_z - own) * _LN2)
    if WEIGHTED:
        # read again: kept through the loop, the labels would take registers from the classes
        label = load_labels(
            labels_ptr, sample, i, j, group, batch, K, h, w, ignore_index, FACTOR, ROWS, BLOCK, WIDE
        )
        loss *= _class_weight(weights_ptr, label, K)
    hard = valid & ~(loss <= limit)  # a NaN is hard, so that it shows
    offs, plane = _map_offsets(cell, group, num_cells, FACTOR, ROWS, WIDE)
    tl.store(maps_ptr + offs, tl.where(valid, loss, -1.0))
    slot = group * tl.num_programs(0) + pid
    slots = tl.num_programs(0) * tl.num_programs(1)
    tl.store(sums_ptr + slot, tl.sum(tl.where(hard, loss, 0.0)))
    # counted in floats: of integers the compiler makes bit masks in local memory
    tl.store(counts_ptr + slot, tl.sum(tl.where(valid, 1.0, 0.0)).to(tl.int32))
    tl.store(counts_ptr + slots + slot, tl.sum(tl.where(hard, 1.0, 0.0)).to(tl.int32))
    # an infinite logarithm makes all probabilities, and so the gradient, of a pixel outside zero
    if SAVE:
        tl.store(maps_ptr + plane + offs, tl.where(inside, shift + log_z, float("inf")))
    if HAS_TEACHER:
        log_u = tl.log2(sum_u) if TEMPERED else log_z
        log_t = tl.log2(sum_t)
        kl = tl.where(inside, cross / sum_t + (log_u - log_t), 0.0)
        tl.store(sums_ptr + slots + slot, tl.sum(kl) * _LN2)
        if SAVE:
            log_t = tl.where(inside, shift_t + log_t, float("inf"))
            tl.store(maps_ptr + 2 * plane + offs, log_t)
            if TEMPERED:
                log_u = tl.where(inside, shift * inverse_t + log_u, float("inf"))
                tl.store(maps_ptr + 3 * plane + offs, log_u)


@triton.jit(do_not_specialize=_NUMBERS)
def _segmentation_loss_bwd_kernel(
    logits_ptr, teacher_ptr, labels_ptr, weights_ptr, maps_ptr, selection_ptr,
    d_ohem_ptr, d_kl_ptr, corners_ptr,
    batch, K, h, w, num_cells, inverse_t, kl_scale, ignore_index,
    HAS_TEACHER: tl.constexpr, TEMPERED: tl.constexpr, WEIGHTED: tl.constexpr,
    LAST: tl.constexpr, TEACHER_LAST: tl.constexpr, CHUNK: tl.constexpr,
    FACTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient of each cell at its corners.

    Args:
        logits_ptr: ``[B, K, h, w]``, contiguous or channels-last.
        teacher_ptr: the same of the teacher, if there is one.
        labels_ptr: ``[B, H, W]`` integers, contiguous.
        weights_ptr: ``[K]`` float32, of the classes, if they are weighted.
        maps_ptr: ``[2 to 4, f, f, num_cells]`` float32, of the forward kernel.
        selection_ptr: ``[3]`` float32, of the selection: smallest loss kept, weights above and at
            it.
        d_ohem_ptr: one number, gradient of the cross-entropy.
        d_kl_ptr: one number, gradient of the divergence.
        corners_ptr: ``[4, groups, K, num_cells]`` float32, written; for f = 1 the first corner
            alone.
        batch: B.
        K: classes.
        h: rows of the logits.
        w: columns of the logits.
        num_cells: cells of a map, in whole programs.
        inverse_t: one over the temperature.
        kl_scale: ``T / (B K H W)``, of the divergence's gradient.
        ignore_index: label of pixels without a class.
        HAS_TEACHER: there is a teacher.
        TEMPERED: the temperature of the divergence is not one.
        WEIGHTED: the classes have weights.
        LAST: the logits are channels-last.
        TEACHER_LAST: those of the teacher are.
        CHUNK: classes of a round of the loop: 1, 2 or 4, more than 1 where either is channels-last.
        FACTOR: the upsampling factor f.
        ROWS: rows of a cell that a lane works on.
        BLOCK: cells of a program.
        WIDE: offsets need 64 bits.
    """
    group, groups = tl.program_id(1), tl.num_programs(1)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    sample, i, j, _, _, _, lower, right = dual_cells(cell, group, batch, h, w, FACTOR, ROWS)
    label = load_labels(
        labels_ptr, sample, i, j, group, batch, K, h, w, ignore_index, FACTOR, ROWS, BLOCK, WIDE
    )
    offs, plane = _map_offsets(cell, group, num_cells, FACTOR, ROWS, WIDE)
    loss = tl.load(maps_ptr + offs)
    log_z = tl.load(maps_ptr + plane + offs)
    if HAS_TEACHER:
        log_t = tl.load(maps_ptr + 2 * plane + offs)
        if TEMPERED:
            log_u = tl.load(maps_ptr + 3 * plane + offs)
    cutoff = tl.load(selection_ptr)
    weight = tl.where(loss == cutoff, tl.load(selection_ptr + 2), tl.load(selection_ptr + 1))
    weight = tl.where((loss < 0) | (loss < cutoff), 0.0, weight) * tl.load(d_ohem_ptr)
    if WEIGHTED:
        scale = _class_weight(weights_ptr, label, K)
        weight *= scale
        loss = loss / scale
    # softmax minus one at the true class: exp(-loss) - 1
    growth, _ = exp_terms(-loss)
    at_class = weight * growth
    weight_kl = tl.load(d_kl_ptr) * kl_scale
    scale_t = _LOG2E * inverse_t
    cells = num_cells
    if WIDE:
        cells = tl.cast(num_cells, tl.int64)
    corners_ptr += group * K * cells
    step = groups * K * cells
    corners, plane = corners_of(sample, i, j, batch, K, h, w, LAST, WIDE)
    x = load_class(logits_ptr, corners)
    if HAS_TEACHER:
        corners_t, plane_t = corners_of(sample, i, j, batch, K, h, w, TEACHER_LAST, WIDE)
        y = load_class(teacher_ptr, corners_t)
    for first in range(0, K, CHUNK):
        xs, x = next_classes(x, logits_ptr, corners, first, K, plane, LAST, CHUNK)
        if HAS_TEACHER:
            ys, y = next_classes(y, teacher_ptr, corners_t, first, K, plane_t, TEACHER_LAST, CHUNK)
        for c in tl.static_range(CHUNK):
            k = first + c
            x00, x01, x10, x11 = of_class(xs[c], k, K, CHUNK)
            z = interpolate(x00, x01, x10, x11, _LOG2E, lower, right)
            p = tl.exp2(z - log_z)
            grad = tl.where(label == k, at_class, weight * p)
            if HAS_TEACHER:
                y00, y01, y10, y11 = of_class(ys[c], k, K, CHUNK)
                q = tl.exp2(interpolate(y00, y01, y10, y11, scale_t, lower, right) - log_t)
                if TEMPERED:
                    p = tl.exp2(z * inverse_t - log_u)
                grad += weight_kl * (p - q)
            ptrs = corners_ptr + cell
            mask = tl.full(cell.shape, True, tl.int1) & (k < K)
            if FACTOR == 1:
                tl.store(ptrs, grad, mask=mask)
            else:
                to_left = tl.sum(grad * (1.0 - right), 1, keep_dims=True)
                to_right = tl.sum(grad * right, 1, keep_dims=True)
                upper = 1.0 - lower
                tl.store(ptrs, tl.sum(to_left * upper, 0, keep_dims=True), mask=mask)
                ptrs += step
                tl.store(ptrs, tl.sum(to_right * upper, 0, keep_dims=True), mask=mask)
                ptrs += step
                tl.store(ptrs, tl.sum(to_left * lower, 0, keep_dims=True), mask=mask)
                ptrs += step
                tl.store(ptrs, tl.sum(to_right * lower, 0, keep_dims=True), mask=mask)
            corners_ptr += cells


@triton.jit(do_not_specialize=["K", "h", "w", "num_cells"])
def _segmentation_loss_fold_kernel(
    corners_ptr, grad_ptr, K, h, w, num_cells, stride_b, stride_k, stride_h, stride_w,
    FACTOR: tl.constexpr, GROUPS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    WIDE: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Add what the four cells around each logit left for it.

    Args:
        corners_ptr: ``[4, groups, K, num_cells]`` float32, of the kernel before.
        grad_ptr: ``[B, K, h, w]``, any strides, written.
        K: classes.
        h: rows of the logits.
        w: columns of the logits.
        num_cells: cells of a map, in whole programs.
        stride_b: elements from sample to sample of the gradient.
        stride_k: elements from class to class.
        stride_h: elements from row to row.
        stride_w: elements from column to column.
        FACTOR: the upsampling factor f.
        GROUPS: programs that share the rows of a cell.
        BLOCK_K: classes of a tile.
        BLOCK_P: logits of a tile.
        WIDE: offsets need 64 bits.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    sample = tl.program_id(2)
    offs_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    offs_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    mask = (offs_k < K) & (offs_p < h * w)
    y, x = offs_p // w, offs_p % w
    # the cell below and to the right, whose upper left corner it is
    cell = sample * (h + 1) * (w + 1) + (y + 1) * (w + 1) + x + 1
    cells = num_cells
    if WIDE:
        cells = tl.cast(num_cells, tl.int64)
        sample = sample.to(tl.int64)
    total = tl.zeros((BLOCK_K, BLOCK_P), tl.float32)
    for group in tl.static_range(GROUPS):
        ptrs = corners_ptr + (group * K + offs_k) * cells + cell
        total += tl.load(ptrs, mask=mask, other=0.0)
        if FACTOR > 1:
            ptrs += GROUPS * K * cells - 1
            total += tl.load(ptrs, mask=mask, other=0.0)
            ptrs += GROUPS * K * cells - w
            total += tl.load(ptrs, mask=mask, other=0.0)
            ptrs += GROUPS * K * cells - 1
            total += tl.load(ptrs, mask=mask, other=0.0)
    out_ptrs = grad_ptr + sample * stride_b + offs_k * stride_k + y * stride_h + x * stride_w
    tl.store(out_ptrs, rounded_to(total, grad_ptr.dtype.element_ty, UP), mask=mask)
