"""The kernels of LayerNorm: tiles of many rows, statistics in registers, sums in a fixed order.

A tile holds whole rows, all channels of each, so a row is read once. Backward computes mean and
deviation again from the row that it needs anyway: nothing but that row is kept for it.
"""

import triton
import triton.language as tl

from ..common.rounding import rounded_to


@triton.jit
def _standardised(x, in_c, C, eps):
    """Rows less their mean, over their deviation, zero where no channel is; and one over that.

    The mean is corrected by what it leaves: a row of nearly equal numbers far from zero keeps its
    digits, in the mean and in the variance.
    """
    x = tl.where(in_c, x, 0.0)
    x = tl.where(in_c, x - (tl.sum(x, axis=1) / C)[:, None], 0.0)
    rest = tl.sum(x, axis=1) / C
    variance = tl.maximum(tl.sum(x * x, axis=1) / C - rest * rest, 0.0) + eps
    inverse = tl.rsqrt(variance)
    # the instruction is good to 22 bits, a step of Newton's to the last one
    inverse *= 1.5 - 0.5 * variance * inverse * inverse
    return tl.where(in_c, (x - rest[:, None]) * inverse[:, None], 0.0), inverse


@triton.jit
def _layer_norm_fwd_kernel(
    x_ptr, branch_ptr, factor_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr,
    R, PER_IMAGE, C, stride_x, stride_branch, eps,
    HAS_BRANCH: tl.constexpr, HAS_FACTOR: tl.constexpr, UP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Normalise a tile of rows; with a branch, add it before and write the sum, too.

    Args:
        x_ptr: rows ``[R, C]``, stride_x apart.
        branch_ptr: likewise, if there is a branch.
        factor_ptr: a number for each image, if there are factors.
        weight_ptr: ``[C]``.
        bias_ptr: ``[C]``.
        sum_ptr: contiguous, written if there is a branch.
        out_ptr: contiguous, written.
        R: rows.
        PER_IMAGE: rows of an image.
        C: channels.
        stride_x: elements from row to row.
        stride_branch: elements from row to row of the branch.
        eps: added to the variance.
        HAS_BRANCH: there is a branch.
        HAS_FACTOR: the branch has factors.
        UP: round to bfloat16 by hand, as the interpreter does not.
        BLOCK_R: rows of a tile.
        BLOCK_C: channels of a tile: all of them.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    offs_r, offs_c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    in_r, in_c = offs_r < R - first, (offs_c < C)[None, :]
    mask = in_r[:, None] & in_c
    place = (offs_r * C)[:, None] + offs_c[None, :]
    x = tl.load(x_ptr + first * stride_x + ((offs_r * stride_x)[:, None] + offs_c[None, :]),
                mask=mask, other=0.0).to(tl.float32)  # fmt: skip
    if HAS_BRANCH:
        branch_ptr += first * stride_branch
        branch = tl.load(branch_ptr + ((offs_r * stride_branch)[:, None] + offs_c[None, :]),
                         mask=mask, other=0.0).to(tl.float32)  # fmt: skip
        if HAS_FACTOR:
            image = (first + offs_r).to(tl.int32) // PER_IMAGE
            factor = tl.load(factor_ptr + image, mask=in_r, other=0.0).to(tl.float32)
            branch *= factor[:, None]
        total = rounded_to(x + branch, sum_ptr.dtype.element_ty, UP)
        tl.store(sum_ptr + first * C + place, total, mask=mask)
        # what backward will find
        x = total.to(tl.float32)
    x, _ = _standardised(x, in_c, C, eps)
    weight = tl.load(weight_ptr + offs_c, mask=offs_c < C, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs_c, mask=offs_c < C, other=0.0).to(tl.float32)
    out = rounded_to(x * weight[None, :] + bias[None, :], out_ptr.dtype.element_ty, UP)
    tl.store(out_ptr + first * C + place, out, mask=mask)


@triton.jit
def _layer_norm_bwd_kernel(
    grad_ptr, second_ptr, above_ptr, factor_ptr, x_ptr, weight_ptr, dx_ptr, dbranch_ptr,
    parts_ptr, of_branch_ptr,
    R, PER_IMAGE, C, stride_grad, stride_second, stride_above, stride_x, eps, TILES,
    HAS_SECOND: tl.constexpr, HAS_ABOVE: tl.constexpr, HAS_FACTOR: tl.constexpr,
    HAS_BRANCH: tl.constexpr, SUMS: tl.constexpr, UP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of some tiles of rows, and their part of those of weight, bias and branch_bias.

    Args:
        grad_ptr: gradient of the normalised rows, stride_grad apart.
        second_ptr: that of their second user, if there is one.
        above_ptr: gradient of the rows themselves by other ways, if there is one.
        factor_ptr: a number for each image, if there are factors.
        x_ptr: rows ``[R, C]`` that were normalised, stride_x apart.
        weight_ptr: ``[C]``.
        dx_ptr: gradient of the rows, contiguous, written.
        dbranch_ptr: the same times the factors, contiguous, written if there is a branch.
        parts_ptr: ``[programs, 2, C]`` float32, written: parts of the gradients of weight and bias.
        of_branch_ptr: ``[programs, C]`` float32, written: parts of that of branch_bias, which is
            the sum of the branch's.
        R: rows.
        PER_IMAGE: rows of an image.
        C: channels.
        stride_grad: elements from row to row of grad.
        stride_second: elements from row to row of second.
        stride_above: elements from row to row of above.
        stride_x: elements from row to row of x.
        eps: added to the variance.
        TILES: tiles of a program.
        HAS_SECOND: the normalised rows have a second user.
        HAS_ABOVE: there is a gradient by other ways.
        HAS_FACTOR: the branch has factors.
        HAS_BRANCH: the branch has a gradient of its own, not that of the rows.
        SUMS: 3, without branch_bias 2, 0 if nothing of these learns.
        UP: round to bfloat16 by hand, as the interpreter does not.
        BLOCK_R: rows of a tile.
        BLOCK_C: channels of a tile: all of them.
    """
    pid = tl.program_id(0).to(tl.int64)
    offs_r, offs_c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    in_c = (offs_c < C)[None, :]
    place = (offs_r * C)[:, None] + offs_c[None, :]
    weight = tl.load(weight_ptr + offs_c, mask=offs_c < C, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    dbias = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    of_branch = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for i in range(0, TILES):
        first = (pid * TILES + i) * BLOCK_R
        in_r = offs_r < R - first
        mask = in_r[:, None] & in_c
        x = tl.load(x_ptr + first * stride_x + ((offs_r * stride_x)[:, None] + offs_c[None, :]),
                    mask=mask, other=0.0).to(tl.float32)  # fmt: skip
        grad = tl.load(
            grad_ptr + first * stride_grad + ((offs_r * stride_grad)[:, None] + offs_c[None, :]),
            mask=mask, other=0.0,
        ).to(tl.float32)  # fmt: skip
        if HAS_SECOND:
            second_at = second_ptr + first * stride_second
            grad += tl.load(second_at + ((offs_r * stride_second)[:, None] + offs_c[None, :]),
                            mask=mask, other=0.0).to(tl.float32)  # fmt: skip
        x, inverse = _standardised(x, in_c, C, eps)
        if SUMS > 0:
            dweight += grad * x
            dbias += grad
        grad *= weight
        along = tl.sum(grad * x, axis=1) / C
        mean = tl.sum(grad, axis=1) / C
        dx = (grad - mean[:, None] - x * along[:, None]) * inverse[:, None]
        if HAS_ABOVE:
            above_at = above_ptr + first * stride_above
            dx += tl.load(above_at + ((offs_r * stride_above)[:, None] + offs_c[None, :]),
                          mask=mask, other=0.0).to(tl.float32)  # fmt: skip
        tl.store(dx_ptr + first * C + place, rounded_to(dx, dx_ptr.dtype.element_ty, UP), mask=mask)
        if HAS_FACTOR:
            image = (first + offs_r).to(tl.int32) // PER_IMAGE
            factor = tl.load(factor_ptr + image, mask=in_r, other=0.0).to(tl.float32)
            dx *= factor[:, None]
        if SUMS > 2:
            of_branch += dx
        if HAS_BRANCH:
            tl.store(dbranch_ptr + first * C + place,
                     rounded_to(dx, dbranch_ptr.dtype.element_ty, UP), mask=mask)  # fmt: skip
    if SUMS > 0:
        parts_ptr += pid * 2 * C
        tl.store(parts_ptr + offs_c, tl.sum(dweight, axis=0), mask=offs_c < C)
        tl.store(parts_ptr + C + offs_c, tl.sum(dbias, axis=0), mask=offs_c < C)
    if SUMS > 2:
        tl.store(of_branch_ptr + pid * C + offs_c, tl.sum(of_branch, axis=0), mask=offs_c < C)
