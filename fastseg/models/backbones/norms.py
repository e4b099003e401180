"""LayerNorm of tokens by the kernels, where the layer is torch's own.

The layers stay ``nn.LayerNorm``, with its parameters and names; apex may take their place. On a CPU
both functions are what is written behind them, in plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastseg import kernels
from fastseg.kernels.common.stand_ins import with_gradient_of


def normalise(norm: nn.Module, x: Tensor, stand_in: Tensor | None = None) -> Tensor:
    """``norm(x)`` of tokens ``[N, h, w, C]``; for the stand-in see `.parts`."""
    if type(norm) is nn.LayerNorm:
        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, stand_in)
    normalised: Tensor = norm(x)
    return normalised


def add_and_normalise(
    norm: nn.Module,
    x: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    branch_bias: Tensor | None = None,
    users: int = 1,
    stand_in: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The sum ``x + factor * branch`` of tokens ``[N, h, w, C]``, and ``norm`` of it.

    The latter comes once for each user, so that a kernel may add their gradients.

    Args:
        norm: a LayerNorm.
        x: the residual stream.
        branch: what is added to it; None for nothing.
        factor: a number per image, see :meth:`MixTransformer.draw`; None for 1.
        branch_bias: in the branch, without a gradient so far, see :func:`linear`.
        users: 1 or 2.
        stand_in: for weight and bias of the norm, see `.parts`.
    """
    if type(norm) is nn.LayerNorm:
        return kernels.residual_layer_norm(
            x, branch, factor, norm.weight, norm.bias, norm.eps, branch_bias, users, stand_in
        )
    if branch is not None:
        if branch_bias is not None:
            branch = with_gradient_of(branch, branch_bias)
        x = add(x, branch, factor)
    return x, *[norm(x)] * users


def add(x: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    """``x + factor * branch``; a factor of None is 1."""
    if factor is None:
        return x + branch
    return x.addcmul(branch, factor.to(torch.promote_types(x.dtype, branch.dtype)))
