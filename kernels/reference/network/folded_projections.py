"""The projections of SegFormer's head times the 1x1 convolution that fuses them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def folded_projections(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Every level's projection times its block of the fusing convolution, and the joint bias.

        out[i] = W_i L_i,   out[n] = sum_i W_i a_i,   fuse = [W_{n-1} .. W_1 W_0]

    Args:
        fuse: ``[E, n E]``, the weight of the convolution; the last level's block comes first, as in
            the published concatenation.
        weights: L_i, ``[E, C_i]``.
        biases: a_i, ``[E]``.
        dtype: of the results. The products are made in the dtype of the weights and then rounded.

    Returns:
        n products ``[E, C_i]`` and the bias ``[E]``.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_projections(fuse, weights, biases, dtype)
    blocks = fuse.chunk(len(weights), dim=1)[::-1]
    products = [block @ weight for block, weight in zip(blocks, weights, strict=True)]
    offsets = [block @ bias for block, bias in zip(blocks, biases, strict=True)]
    return [x.to(dtype) for x in (*products, torch.stack(offsets).sum(dim=0))]


def check_projections(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Raise ValueError unless the projections fit the convolution."""
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"expected as many weights as biases, at least one, got {len(weights)} and "
            f"{len(biases)}"
        )
    e = fuse.shape[0] if fuse.ndim else 0
    if fuse.shape != (e, len(weights) * e) or e == 0:
        raise ValueError(f"expected fuse [E, {len(weights)} E], got {list(fuse.shape)}")
    for weight, bias in zip(weights, biases, strict=True):
        if weight.ndim != 2 or weight.shape[0] != e or weight.shape[1] == 0 or bias.shape != (e,):
            shapes = f"{list(weight.shape)} and {list(bias.shape)}"
            raise ValueError(f"expected a weight [{e}, C] and a bias [{e}], got {shapes}")
    for x in (*weights, *biases):
        if x.dtype != fuse.dtype or x.device != fuse.device or not x.is_floating_point():
            kinds = f"{x.dtype} on {x.device} beside {fuse.dtype} on {fuse.device}"
            raise ValueError(f"expected one float dtype and device, got {kinds}")
    if not dtype.is_floating_point:
        raise ValueError(f"expected results of a float dtype, got {dtype}")
