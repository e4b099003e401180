"""The kernels of the folded projections: products of parameters, in float32 whatever their dtypes.

    P_i = W_i L_i,   b = sum_i W_i a_i,   fuse = [W_{n-1} .. W_1 W_0]
    dW_i = dP_i L_i^T + db a_i^T,   dL_i = W_i^T dP_i,   da_i = W_i^T db

A launch holds the tiles of all levels. Sums run along E or C_i in order: results repeat bit by bit.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...common.rounding import rounded_to
from ...common.tiles import of_map


class Projections(NamedTuple):
    """Projections as an argument of a kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program.
        tiles: of the level's channels, or rows of its projection, as the kernel has it.
        C: channels of the level.
        column: first column of the level's block of the convolution.
        weight_ptr: L_i ``[E, C]``.
        bias_ptr: a_i ``[E]``.
        out_ptr: P_i ``[E, C]``, or its gradient.
        d_weight_ptr: gradient of L_i, in the kernel that makes it.
        d_bias_ptr: gradient of a_i, likewise.
    """

    start: Any
    tiles: Any
    C: Any
    column: Any
    weight_ptr: Any
    bias_ptr: Any
    out_ptr: Any
    d_weight_ptr: Any
    d_bias_ptr: Any


@triton.jit
def load_tile(ptr, offs_m, offs_n, M, N, stride_m, stride_n):
    """A tile of a matrix as float32, zero beyond its ends."""
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    ptrs = ptr + ((offs_m * stride_m)[:, None] + (offs_n * stride_n)[None, :])
    return tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(ptr, x, offs_m, offs_n, M, N, stride_m, UP: tl.constexpr):
    """Store a tile of a matrix whose rows are contiguous."""
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    ptrs = ptr + ((offs_m * stride_m)[:, None] + offs_n[None, :])
    tl.store(ptrs, rounded_to(x, ptr.dtype.element_ty, UP), mask=mask)


@triton.jit
def _projections_fwd_kernel(
    levels, fuse_ptr, bias_ptr, programs, E,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """The products of all levels, and in programs of their own the joint bias.

    Args:
        levels: :class:`Projections`; ``tiles`` are those of its channels, ``out_ptr`` is written.
        fuse_ptr: ``[E, n E]``.
        bias_ptr: ``[E]``, written.
        programs: that make products.
        E: rows of the convolution and of every projection.
        BLOCK_M: rows of a tile.
        BLOCK_N: channels of a tile.
        BLOCK_K: length of a step along E.
        BLOCK_R: rows of a tile of the bias.
        BLOCK_S: length of a step of its sums.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    pid = tl.program_id(0)
    width = E * len(levels.C)
    if pid < programs:
        at = Projections(*of_map(levels.start, levels, pid))
        offs_m = (pid - at.start) // at.tiles * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = (pid - at.start) % at.tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in range(0, E, BLOCK_K):
            offs_k = start + tl.arange(0, BLOCK_K)
            w = load_tile(fuse_ptr + at.column, offs_m, offs_k, E, E, width, 1)
            x = load_tile(at.weight_ptr, offs_k, offs_n, E, at.C, at.C, 1)
            total = tl.dot(w, x, total, input_precision="tf32x3")
        store_tile(at.out_ptr, total, offs_m, offs_n, E, at.C, at.C, UP)
    else:
        offs_r = (pid - programs) * BLOCK_R + tl.arange(0, BLOCK_R)
        sums = tl.zeros((BLOCK_R, BLOCK_S), dtype=tl.float32)
        for i in tl.static_range(len(levels.C)):
            for start in range(0, E, BLOCK_S):
                offs_s = start + tl.arange(0, BLOCK_S)
                w = load_tile(fuse_ptr + levels.column[i], offs_r, offs_s, E, E, width, 1)
                a = tl.load(levels.bias_ptr[i] + offs_s, mask=offs_s < E, other=0.0)
                sums += w * a.to(tl.float32)[None, :]
        bias = rounded_to(tl.sum(sums, axis=1), bias_ptr.dtype.element_ty, UP)
        tl.store(bias_ptr + offs_r, bias, mask=offs_r < E)


@triton.jit
def _projections_bwd_fuse_kernel(
    levels, d_bias_ptr, d_fuse_ptr, E,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution.

    Args:
        levels: :class:`Projections`; ``tiles`` are those of the columns of a block, ``out_ptr`` is
            the gradient of the product.
        d_bias_ptr: ``[E]``, gradient of the joint bias.
        d_fuse_ptr: ``[E, n E]``, written.
        E: rows of the convolution.
        BLOCK_M: rows of a tile.
        BLOCK_N: columns of a tile.
        BLOCK_K: length of a step along the channels.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    pid = tl.program_id(0)
    at = Projections(*of_map(levels.start, levels, pid))
    offs_m = (pid - at.start) // at.tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (pid - at.start) % at.tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    g = tl.load(d_bias_ptr + offs_m, mask=offs_m < E, other=0.0).to(tl.float32)
    a = tl.load(at.bias_ptr + offs_n, mask=offs_n < E, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, at.C, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        d = load_tile(at.out_ptr, offs_m, offs_k, E, at.C, at.C, 1)
        x = load_tile(at.weight_ptr, offs_k, offs_n, at.C, E, 1, at.C)
        total = tl.dot(d, x, total, input_precision="tf32x3")
    total += g[:, None] * a[None, :]
    width = E * len(levels.C)
    store_tile(d_fuse_ptr + at.column, total, offs_m, offs_n, E, E, width, UP)


@triton.jit
def _projections_bwd_kernel(
    levels, fuse_ptr, d_bias_ptr, E,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Gradients of the projections and of their biases.

    Args:
        levels: :class:`Projections`; ``tiles`` are those of its channels, ``out_ptr`` is the
            gradient of the product; ``d_weight_ptr`` and ``d_bias_ptr`` are written.
        fuse_ptr: ``[E, n E]``.
        d_bias_ptr: ``[E]``, gradient of the joint bias.
        E: rows of the convolution and of every projection.
        BLOCK_M: rows of a tile.
        BLOCK_N: channels of a tile.
        BLOCK_K: length of a step along E.
        UP: round to bfloat16 by hand, as the interpreter does not.
    """
    pid = tl.program_id(0)
    at = Projections(*of_map(levels.start, levels, pid))
    tile = (pid - at.start) % at.tiles
    offs_m = (pid - at.start) // at.tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    width = E * len(levels.C)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = tl.zeros((BLOCK_K, BLOCK_M), dtype=tl.float32)
    for start in range(0, E, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        w = load_tile(fuse_ptr + at.column, offs_k, offs_m, E, E, width, 1)
        d = load_tile(at.out_ptr, offs_k, offs_n, E, at.C, at.C, 1)
        g = tl.load(d_bias_ptr + offs_k, mask=offs_k < E, other=0.0).to(tl.float32)
        sums += w * g[:, None]
        total = tl.dot(tl.trans(w), d, total, input_precision="tf32x3")
    store_tile(at.d_weight_ptr, total, offs_m, offs_n, E, at.C, at.C, UP)
    # all tiles of the channels have these sums
    d_bias = rounded_to(tl.sum(sums, axis=0), at.d_bias_ptr.dtype.element_ty, UP)
    tl.store(at.d_bias_ptr + offs_m, d_bias, mask=(offs_m < E) & (tile == 0))
