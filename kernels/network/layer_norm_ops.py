"""The operators of LayerNorm: memory for their results, and the launches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.switch import DEVICES
from .layer_norm_launch import launch_backward, launch_forward, new_parts


def wider(x: torch.dtype, branch: torch.dtype) -> torch.dtype:
    """Dtype of a sum; torch is asked only where it must be, for that counts as an operator."""
    return x if x == branch else torch.promote_types(x, branch)


@torch.library.custom_op("fastseg::layer_norm", mutates_args=(), device_types=DEVICES)
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    out = x.new_empty(x.shape, dtype=dtype)
    launch_forward(x, None, None, weight.contiguous(), bias.contiguous(), eps, None, out)
    return out


@_layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op("fastseg::residual_layer_norm", mutates_args=(), device_types=DEVICES)
def _residual_layer_norm(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    branch_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    total = x.new_empty(x.shape, dtype=wider(x.dtype, branch.dtype))
    out = x.new_empty(x.shape, dtype=dtype)
    factor = None if factor is None else factor.contiguous()
    launch_forward(x, branch, factor, weight.contiguous(), bias.contiguous(), eps, total, out)
    return total, out


@_residual_layer_norm.register_fake
def _(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    branch_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    total = x.new_empty(x.shape, dtype=wider(x.dtype, branch.dtype))
    return total, x.new_empty(x.shape, dtype=dtype)


def _new_gradients(
    x: Tensor, of_x: torch.dtype, of_branch: torch.dtype | None, learns: bool, biased: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to be written; those that are not wanted are empty."""
    return (
        x.new_empty(x.shape, dtype=of_x),
        x.new_empty(0 if of_branch is None else x.shape, dtype=of_branch),
        *new_parts(x, learns, biased),
    )


@torch.library.custom_op("fastseg::layer_norm_bwd", mutates_args=(), device_types=DEVICES)
def _layer_norm_bwd(
    grad: Tensor,
    second: Tensor | None,
    above: Tensor | None,
    factor: Tensor | None,
    x: Tensor,
    weight: Tensor,
    eps: float,
    of_x: torch.dtype,
    of_branch: torch.dtype | None,
    learns: bool,
    biased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and branch, and parts of those of weight and bias, and of branch_bias.

    ``of_*`` are dtypes.
    """
    found = _new_gradients(x, of_x, of_branch, learns, biased)
    dx, dbranch, parts, of_bias = found
    factor = None if factor is None else factor.contiguous()
    launch_backward(
        grad, second, above, factor, x, weight.contiguous(), eps,
        dx, None if of_branch is None else dbranch, parts, of_bias,
    )  # fmt: skip
    return found


@_layer_norm_bwd.register_fake
def _(
    grad: Tensor,
    second: Tensor | None,
    above: Tensor | None,
    factor: Tensor | None,
    x: Tensor,
    weight: Tensor,
    eps: float,
    of_x: torch.dtype,
    of_branch: torch.dtype | None,
    learns: bool,
    biased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _new_gradients(x, of_x, of_branch, learns, biased)
