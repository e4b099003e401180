"""Folded projections of the head: all products of its parameters in one launch, and two backward.

The parameters stay as they are; the products come in the dtype in which the head computes, and
gradients arrive from there. As operators of torch the same takes 11 launches and 22 backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ... import reference
from ...common.device import on_device_of
from ...common.feature_maps import DTYPES, starts_of
from ...common.switch import DEVICES, UP, runs_on
from ...reference.network.folded_projections import check_projections
from .projections_kernels import (
    Projections,
    _projections_bwd_fuse_kernel,
    _projections_bwd_kernel,
    _projections_fwd_kernel,
)

_TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "UP": UP, "num_warps": 4}
_ROWS, _STEP = 16, 128  # of a tile of the joint bias


def _levels_of(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    outs: Sequence[Tensor],
    columns: Sequence[int],
    grads: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ()),
) -> tuple[Projections, int]:
    """The projections as an argument of a kernel, and the number of its programs.

    ``columns`` are those of the matrix that is made, of each level.
    """
    e, n = weights[0].shape[0], len(weights)
    tiles = tuple(triton.cdiv(number, _TILE["BLOCK_N"]) for number in columns)
    programs = [triton.cdiv(e, _TILE["BLOCK_M"]) * number for number in tiles]
    levels = Projections(
        start=starts_of(programs),
        tiles=tiles,
        C=tuple(x.shape[1] for x in weights),
        column=tuple((n - 1 - i) * e for i in range(n)),
        weight_ptr=tuple(weights),
        bias_ptr=tuple(biases),
        out_ptr=tuple(outs),
        # a kernel without them does not read what stands in their place
        d_weight_ptr=tuple(grads[0] or weights),
        d_bias_ptr=tuple(grads[1] or biases),
    )
    return levels, sum(programs)


def fold(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """The forward launch."""
    fuse, weights, biases = _contiguous(fuse, weights, biases)
    outs = [torch.empty_like(x, dtype=dtype) for x in (*weights, biases[0])]
    levels, programs = _levels_of(weights, biases, outs[:-1], [x.shape[1] for x in weights])
    e = len(fuse)
    with on_device_of(fuse):
        _projections_fwd_kernel[(programs + triton.cdiv(e, _ROWS),)](
            levels, fuse, outs[-1], programs, e, BLOCK_R=_ROWS, BLOCK_S=_STEP, **_TILE
        )
    return outs


def unfold(
    grads: Sequence[Tensor], fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    """The backward launches: gradients of the convolution, of the projections and their biases."""
    grads = [x.contiguous() for x in grads]
    fuse, weights, biases = _contiguous(fuse, weights, biases)
    *d_outs, d_bias = grads
    e = len(fuse)
    d_fuse, d_weights, d_biases = (
        torch.empty_like(fuse),
        [torch.empty_like(x) for x in weights],
        [torch.empty_like(x) for x in biases],
    )
    with on_device_of(fuse):
        levels, programs = _levels_of(weights, biases, d_outs, [e] * len(weights))
        _projections_bwd_fuse_kernel[(programs,)](levels, d_bias, d_fuse, e, **_TILE)
        columns = [x.shape[1] for x in weights]
        levels, programs = _levels_of(weights, biases, d_outs, columns, (d_weights, d_biases))
        _projections_bwd_kernel[(programs,)](levels, fuse, d_bias, e, **_TILE)
    return [d_fuse, *d_weights, *d_biases]


def _contiguous(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return fuse.contiguous(), [x.contiguous() for x in weights], [x.contiguous() for x in biases]


@torch.library.custom_op("fastseg::folded_projections", mutates_args=(), device_types=DEVICES)
def _folded_projections(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    return fold(fuse, weights, biases, dtype)


@_folded_projections.register_fake
def _(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    return [x.new_empty(x.shape, dtype=dtype) for x in (*weights, biases[0])]


@torch.library.custom_op("fastseg::folded_projections_bwd", mutates_args=(), device_types=DEVICES)
def _folded_projections_bwd(
    grads: Sequence[Tensor], fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    return unfold(grads, fuse, weights, biases)


@_folded_projections_bwd.register_fake
def _(
    grads: Sequence[Tensor], fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (fuse, *weights, *biases)]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    fuse, weights, biases, _ = inputs
    ctx.save_for_backward(fuse, *weights, *biases)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor], None]:
    fuse, *parts = ctx.saved_tensors
    n = len(parts) // 2
    d_fuse, *found = _folded_projections_bwd(grads, fuse, parts[:n], parts[n:])
    return d_fuse, found[:n], found[n:], None


_folded_projections.register_autograd(_backward, setup_context=_setup_context)


def folded_projections(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Every level's projection times its block of the fusing convolution, and the joint bias.

        out[i] = W_i L_i,   out[n] = sum_i W_i a_i,   fuse = [W_{n-1} .. W_1 W_0]

    On a GPU the products are made in float32 and rounded once, and so are the gradients; float64
    takes the definition.

    Args:
        fuse: ``[E, n E]``, the weight of the convolution, any float dtype; the last level's block
            comes first.
        weights: L_i, ``[E, C_i]``, at least one, in the dtype of ``fuse``.
        biases: a_i, ``[E]``, likewise.
        dtype: of the results.

    Returns:
        n products ``[E, C_i]`` and the bias ``[E]``.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_projections(fuse, weights, biases, dtype)
    if fuse.dtype not in DTYPES or dtype not in DTYPES or not runs_on(fuse):
        return reference.folded_projections(fuse, weights, biases, dtype)
    found: list[Tensor] = _folded_projections(fuse, list(weights), list(biases), dtype)
    return found
