"""Launches of LayerNorm: tiles, rows of tokens, and the programs of both passes."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.switch import UP
from .layer_norm_kernels import (
    _layer_norm_bwd_kernel,
    _layer_norm_fwd_kernel,
    _layer_norm_reduce_kernel,
)

# of backward, at most and at least: some for each of the 132 multiprocessors of an H200, but few
# enough that their parts are small beside the rows
_PROGRAMS, _LEAST_TILES = 1024, 8


def tiles(channels: int, elements: int) -> dict[str, int]:
    """Tile of the kernels, with so many elements for a thread, more where a row has more."""
    block_c = triton.next_power_of_2(channels)
    warps = 4 if block_c <= 256 else 8
    rows = max(1, 32 * warps * elements // block_c)
    return {"BLOCK_R": min(128, rows), "BLOCK_C": block_c, "num_warps": warps}


def _rows(x: Tensor) -> Tensor:
    """Tokens as rows ``[R, C]`` of contiguous channels; a copy where strides are irregular."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def launch_forward(
    x: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    total: Tensor | None,
    out: Tensor,
) -> None:
    """The forward launch: write the normalised tokens, and the sum if there is a branch."""
    rows = _rows(x)
    others = rows if branch is None else _rows(branch)
    # two accesses of 16 bytes to each tensor for a thread
    tile = tiles(rows.shape[1], 32 // rows.dtype.itemsize)
    with on_device_of(x):
        _layer_norm_fwd_kernel[(triton.cdiv(len(rows), tile["BLOCK_R"]),)](
            rows, others, factor, weight, bias, total, out,
            len(rows), len(rows) // len(x), rows.shape[1], rows.stride(0), others.stride(0), eps,
            HAS_BRANCH=branch is not None, HAS_FACTOR=factor is not None, UP=UP, **tile,
        )  # fmt: skip


def launch_backward(
    grad: Tensor,
    above: Tensor | None,
    factor: Tensor | None,
    x: Tensor,
    weight: Tensor,
    eps: float,
    dx: Tensor,
    dbranch: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    dbranch_bias: Tensor | None = None,
) -> None:
    """The backward launches: write the gradients; those of weight and bias if they are wanted.

    With these alone that of branch_bias can be had, too.
    """
    rows, grads = _rows(x), _rows(grad)
    aboves = grads if above is None else _rows(above)
    channels = rows.shape[1]
    # fewer, for backward holds three tensors and two sums; where channels are loaded one by one,
    # their addresses take registers, too
    tile = tiles(channels, 4 if channels % 16 else 8)
    blocks = triton.cdiv(len(rows), tile["BLOCK_R"])
    each = min(blocks, max(_LEAST_TILES, triton.cdiv(blocks, _PROGRAMS)))
    programs = triton.cdiv(blocks, each)
    sums = 0 if dweight is None else 2 if dbranch_bias is None else 3
    parts = x.new_empty((programs, sums, channels), dtype=torch.float32) if sums else None
    with on_device_of(x):
        _layer_norm_bwd_kernel[(programs,)](
            grads, aboves, factor, rows, weight, dx, dbranch, parts,
            len(rows), len(rows) // len(x), channels,
            grads.stride(0), aboves.stride(0), rows.stride(0), eps, each,
            HAS_ABOVE=above is not None, HAS_FACTOR=factor is not None,
            HAS_BRANCH=dbranch is not None, SUMS=sums, UP=UP, **tile,
        )  # fmt: skip
        if parts is not None:
            _layer_norm_reduce_kernel[(triton.cdiv(channels, 16), sums)](
                parts, dweight, dbias, dbranch_bias, programs, channels,
                SUMS=sums, UP=UP, BLOCK_P=256, BLOCK_C=16, num_warps=8,
            )  # fmt: skip
