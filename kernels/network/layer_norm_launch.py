"""Launches of LayerNorm: tiles, rows of tokens, and the programs of both passes."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.row_tiles import row_tile, summing_programs, summing_tile
from ..common.switch import UP
from .layer_norm_kernels import _layer_norm_bwd_kernel, _layer_norm_fwd_kernel


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
    tile = row_tile(rows.shape[1], 32 // rows.dtype.itemsize)
    with on_device_of(x):
        _layer_norm_fwd_kernel[(triton.cdiv(len(rows), tile["BLOCK_R"]),)](
            rows, others, factor, weight, bias, total, out,
            len(rows), len(rows) // len(x), rows.shape[1], rows.stride(0), others.stride(0), eps,
            HAS_BRANCH=branch is not None, HAS_FACTOR=factor is not None, UP=UP, **tile,
        )  # fmt: skip


def new_parts(x: Tensor, learns: bool, biased: bool) -> tuple[Tensor, Tensor]:
    """Memory for the parts of the gradients of weight and bias, and of branch_bias.

    Empty where they are not wanted.
    """
    rows, channels = x.shape[:-1].numel(), x.shape[-1]
    count = summing_programs(rows, channels)[0]
    return (
        x.new_empty((count if learns else 0, 2, channels), dtype=torch.float32),
        x.new_empty((count if biased else 0, 1, channels), dtype=torch.float32),
    )


def launch_backward(
    grad: Tensor,
    second: Tensor | None,
    above: Tensor | None,
    factor: Tensor | None,
    x: Tensor,
    weight: Tensor,
    eps: float,
    dx: Tensor,
    dbranch: Tensor | None,
    parts: Tensor,
    of_branch: Tensor,
) -> None:
    """The backward launch: write the gradients, and those :func:`new_parts` that are wanted.

    Those of branch_bias come with those of weight and bias alone.
    """
    rows, grads = _rows(x), _rows(grad)
    # what is not there is not read: the weights stand in for it
    nothing = weight.view(1, -1)
    seconds, aboves = (nothing if y is None else _rows(y) for y in (second, above))
    channels = rows.shape[1]
    programs, each = summing_programs(*rows.shape)
    with on_device_of(x):
        _layer_norm_bwd_kernel[(programs,)](
            grads, seconds, aboves, factor, rows, weight, dx, dbranch, parts, of_branch,
            len(rows), len(rows) // len(x), channels, grads.stride(0), seconds.stride(0),
            aboves.stride(0), rows.stride(0), eps, each,
            HAS_SECOND=second is not None, HAS_ABOVE=above is not None,
            HAS_FACTOR=factor is not None, HAS_BRANCH=dbranch is not None,
            SUMS=(2 + bool(len(of_branch))) * bool(len(parts)), UP=UP, **summing_tile(channels),
        )  # fmt: skip
