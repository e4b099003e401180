"""LayerNorm of tokens, alone and behind a residual sum, with many rows in a program.

    s[n] = x[n] + factor[n] branch[n]
    y = (s - mean) / sqrt(var + eps) weight + bias
    ds = rstd (g - mean g - y^ mean(g y^)) + ds',   g = dy weight,   y^ = (s - mean) rstd
    dx = ds,   dbranch = factor ds,   dweight = sum_r dy y^,   dbias = sum_r dy
    dbranch_bias = sum_r dbranch

Each pass reads and writes every tensor once: the sum, the factor of stochastic depth and the
gradient ``ds'`` that reaches the sum by other ways cost no pass of their own, nor does the gradient
of a bias that the branch has in it. Nothing is kept for
backward but the rows that were normalised. The programs of backward write parts of the gradients
of weight and biases, a second launch adds them in a fixed order: results repeat bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..common.switch import DEVICES, runs_on
from .layer_norm_launch import launch_backward, launch_forward

MAX_CHANNELS = 4096  # a tile holds all of them
LEAST_EPS = 1e-30  # rows beyond the last have no other deviation


def _wider(x: torch.dtype, branch: torch.dtype) -> torch.dtype:
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
    total = x.new_empty(x.shape, dtype=_wider(x.dtype, branch.dtype))
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
    total = x.new_empty(x.shape, dtype=_wider(x.dtype, branch.dtype))
    return total, x.new_empty(x.shape, dtype=dtype)


def _gradients(
    x: Tensor,
    of_x: torch.dtype,
    of_branch: torch.dtype | None,
    weight: Tensor,
    learns: bool,
    of_branch_bias: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to be written; those that are not wanted are empty."""
    return (
        x.new_empty(x.shape, dtype=of_x),
        x.new_empty(0 if of_branch is None else x.shape, dtype=of_branch),
        weight.new_empty(weight.shape if learns else 0),
        weight.new_empty(weight.shape if learns else 0),
        weight.new_empty(0 if of_branch_bias is None else weight.shape, dtype=of_branch_bias),
    )


@torch.library.custom_op("fastseg::layer_norm_bwd", mutates_args=(), device_types=DEVICES)
def _layer_norm_bwd(
    grad: Tensor,
    above: Tensor | None,
    factor: Tensor | None,
    x: Tensor,
    weight: Tensor,
    eps: float,
    of_x: torch.dtype,
    of_branch: torch.dtype | None,
    learns: bool,
    of_branch_bias: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, branch, weight, bias and branch_bias; ``of_*`` are their dtypes."""
    found = _gradients(x, of_x, of_branch, weight, learns, of_branch_bias)
    dx, dbranch, dweight, dbias, dbranch_bias = found
    factor = None if factor is None else factor.contiguous()
    launch_backward(
        grad, above, factor, x, weight.contiguous(), eps,
        dx, None if of_branch is None else dbranch,
        dweight if learns else None, dbias if learns else None,
        None if of_branch_bias is None else dbranch_bias,
    )  # fmt: skip
    return found


@_layer_norm_bwd.register_fake
def _(
    grad: Tensor,
    above: Tensor | None,
    factor: Tensor | None,
    x: Tensor,
    weight: Tensor,
    eps: float,
    of_x: torch.dtype,
    of_branch: torch.dtype | None,
    learns: bool,
    of_branch_bias: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _gradients(x, of_x, of_branch, weight, learns, of_branch_bias)


def _context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    learns = any(ctx.needs_input_grad[1:3])
    dx, _, dweight, dbias, _ = _layer_norm_bwd(
        grad, None, None, x, weight, ctx.eps, x.dtype, None, learns, None
    )
    return dx, *((dweight, dbias) if learns else (None, None)), None, None


_layer_norm.register_autograd(_backward, setup_context=_context)


def _residual_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, branch, factor, weight, _, ctx.eps, _, branch_bias = inputs
    ctx.save_for_backward(output[0], factor, weight)
    ctx.dtypes = x.dtype, branch.dtype, None if branch_bias is None else branch_bias.dtype
    ctx.normalised_dtype = output[1].dtype
    # the last sum of a level is only normalised: no zeros are written and read for it
    ctx.set_materialize_grads(False)


def _residual_backward(
    ctx: Any, above: Tensor | None, grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, factor, weight = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(total, dtype=ctx.normalised_dtype)
    of_x, of_branch, of_branch_bias = ctx.dtypes
    of_branch_bias = of_branch_bias if ctx.needs_input_grad[7] else None
    learns = any(ctx.needs_input_grad[3:5]) or of_branch_bias is not None
    # without factors and in one dtype both have the same gradient
    alike = factor is None and of_x == of_branch
    dx, dbranch, dweight, dbias, dbranch_bias = _layer_norm_bwd(
        grad, above, factor, total, weight, ctx.eps,
        of_x, None if alike else of_branch, learns, of_branch_bias,
    )  # fmt: skip
    of_affine = (dweight, dbias) if learns else (None, None)
    of_bias = None if of_branch_bias is None else dbranch_bias
    return dx, dx if alike else dbranch, None, *of_affine, None, None, of_bias


_residual_layer_norm.register_autograd(_residual_backward, setup_context=_residual_context)


def _check_devices(*tensors: Tensor | None) -> None:
    if len(devices := {y.device for y in tensors if y is not None}) > 1:
        raise ValueError(f"expected all tensors on one device, got {sorted(map(str, devices))}")


def _is_row(y: Tensor, x: Tensor) -> bool:
    return y.shape == x.shape[-1:] and y.is_floating_point() and y.dtype.itemsize <= 4


def _fit(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> bool:
    """True if the kernels take these tokens; never if the definition refuses them."""
    return (
        x.ndim >= 2
        and x.is_floating_point()
        and _is_row(weight, x)
        and _is_row(bias, x)
        and weight.dtype == bias.dtype
        and x.numel() > 0
        and x.shape[-1] <= MAX_CHANNELS
        and eps >= LEAST_EPS
        and runs_on(x)
    )


def _normalised_dtype(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Float32 under autocast, as torch's rule is on a GPU, else the given dtype."""
    kind = x.device.type
    # meta has no autocast to ask for
    return torch.float32 if kind != "meta" and torch.is_autocast_enabled(kind) else dtype


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise each token over its channels.

        y[r, c] = (x[r, c] - mean_c x[r]) / sqrt(var_c x[r] + eps) * weight[c] + bias[c]

    with the biased variance; statistics and sums are float32. On a GPU results repeat bit by bit,
    nothing waits for the device, and the gradient itself has none. Float64, no tokens, more than
    4096 channels and an eps below 1e-30 take the definition, which is torch's own.

    Args:
        x: tokens ``[N, ..., C]``, any float dtype. Rows of contiguous channels at one distance are
            read in place, other strides copied.
        weight: ``[C]``, any float dtype.
        bias: ``[C]``, in the dtype of weight.
        eps: added to the variance.

    Returns:
        The shape of x, contiguous, in its dtype; under autocast in float32, as torch's own on a
        GPU. Gradients have the dtypes of their tensors.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    _check_devices(x, weight, bias)
    if not _fit(x, weight, bias, eps):
        return reference.layer_norm(x, weight, bias, eps)
    result: Tensor = _layer_norm(x, weight, bias, eps, _normalised_dtype(x, x.dtype))
    return result


def residual_layer_norm(
    x: Tensor,
    branch: Tensor,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    branch_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a branch to a residual stream and normalise the sum.

        s[n] = x[n] + factor[n] * branch[n],   y = layer_norm(s, weight, bias, eps)

    What is normalised is the sum as it is stored. On a GPU a launch writes both, and backward takes
    the gradients of both in one: of x, and of the branch where it is another. For the rest see
    :func:`layer_norm`.

    Args:
        x: tokens ``[N, ..., C]`` of the stream, any float dtype.
        branch: the same shape, any float dtype.
        factor: N numbers, such as ``[N, 1, 1, 1]``: stochastic depth, constant; None for ones.
        weight: ``[C]``, any float dtype.
        bias: ``[C]``, in the dtype of weight.
        eps: added to the variance.
        branch_bias: ``[C]``, any float dtype: what the branch has in it already as a constant, the
            bias of the layer that made it. It changes no value; its gradient is that of the branch,
            summed over the tokens in float32. None for none.

    Returns:
        ``(s, y)``, both contiguous in the shape of x. s has the dtype that x and branch promote to,
        so a float32 stream stays float32 beside a bfloat16 branch; y has that of s, under autocast
        float32.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    _check_devices(x, branch, factor, weight, bias, branch_bias)
    fits = (
        branch.shape == x.shape
        and branch.is_floating_point()
        and branch.dtype != torch.float64
        and (factor is None or (factor.numel() == len(x) and factor.is_floating_point()))
        and (branch_bias is None or _is_row(branch_bias, x))
    )
    if not (fits and _fit(x, weight, bias, eps)):
        return reference.residual_layer_norm(x, branch, factor, weight, bias, eps, branch_bias)
    dtype = _normalised_dtype(x, _wider(x.dtype, branch.dtype))
    factor = None if factor is None else factor.detach()
    total, result = _residual_layer_norm(x, branch, factor, weight, bias, eps, dtype, branch_bias)
    return total, result
