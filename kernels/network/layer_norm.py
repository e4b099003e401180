"""LayerNorm of tokens, alone and behind a residual sum, with many rows in a program.

    s[n] = x[n] + factor[n] branch[n]
    y = (s - mean) / sqrt(var + eps) weight + bias
    ds = rstd (g - mean g - y^ mean(g y^)) + ds',   g = dy weight,   y^ = (s - mean) rstd
    dx = ds,   dbranch = factor ds,   dweight = sum_r dy y^,   dbias = sum_r dy
    dbranch_bias = sum_r dbranch

Each pass reads and writes every tensor once: the sum, the factor of stochastic depth and the
gradient ``ds'`` that reaches the sum by other ways cost no pass of their own, nor does the gradient
of a bias that the branch has in it, nor the sum of the gradients of two users of y. Nothing is kept
for backward but the rows that were normalised. The programs of backward write parts of the
gradients of weight and biases, a second launch adds them in a fixed order: results repeat bit by
bit. That launch may be one for several layers, see :mod:`..common.stand_ins`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..common.row_tiles import MAX_CHANNELS, summing_programs
from ..common.stand_ins import with_gradient_of
from ..common.switch import runs_on
from .layer_norm_autograd import normalised, normalised_for_users
from .layer_norm_ops import wider

LEAST_EPS = 1e-30  # rows beyond the last have no other deviation


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


def _norm(
    x: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    branch_bias: Tensor | None,
    stand_in: Tensor | None,
    users: int,
) -> tuple[Tensor, ...]:
    """The sum, and what is normalised once for each user, by the kernels."""
    dtype = _normalised_dtype(x, x.dtype if branch is None else wider(x.dtype, branch.dtype))
    factor = None if factor is None else factor.detach()
    leaves = (x, branch, weight, bias, branch_bias, stand_in)
    learns = torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in leaves)
    if learns and not torch.compiler.is_compiling():
        return normalised_for_users(
            x, branch, factor, weight, bias, eps, dtype, branch_bias, stand_in, users
        )
    total, out = normalised(x, branch, factor, weight, bias, eps, dtype, branch_bias)
    return total, *[out] * users


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, stand_in: Tensor | None = None
) -> Tensor:
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
        stand_in: ``[P, 2, C]``, which may have the gradients of weight and bias in their place, see
            :mod:`fastseg.kernels.common.stand_ins`.

    Returns:
        The shape of x, contiguous, in its dtype; under autocast in float32, as torch's own on a
        GPU. Gradients have the dtypes of their tensors.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    _check_devices(x, weight, bias)
    if not _fit(x, weight, bias, eps):
        return reference.layer_norm(x, weight, bias, eps)
    return _norm(x, None, None, weight, bias, eps, None, _fitting(stand_in, x, 2), 1)[1]


def residual_layer_norm(
    x: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    branch_bias: Tensor | None = None,
    users: int = 1,
    stand_in: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Add a branch to a residual stream and normalise the sum.

        s[n] = x[n] + factor[n] * branch[n],   y = layer_norm(s, weight, bias, eps)

    What is normalised is the sum as it is stored. On a GPU a launch writes both, and backward takes
    the gradients of both, and of both users, in one: of x, and of the branch where it is another.
    For the rest see :func:`layer_norm`.

    Args:
        x: tokens ``[N, ..., C]`` of the stream, any float dtype.
        branch: the same shape, any float dtype; None: nothing is added, and s is x.
        factor: N numbers, such as ``[N, 1, 1, 1]``: stochastic depth, constant; None for ones.
        weight: ``[C]``, any float dtype.
        bias: ``[C]``, in the dtype of weight.
        eps: added to the variance.
        branch_bias: ``[C]``, any float dtype: what the branch has in it already as a constant, the
            bias of the layer that made it. It changes no value; its gradient is that of the branch,
            summed over the tokens in float32. None for none. Its stand-in ``[P, 1, C]`` may take
            its place.
        users: 1 or 2, how many users y has. Each gets a y of its own, not to be changed in place.
        stand_in: as for :func:`layer_norm`.

    Returns:
        ``(s, y)`` or ``(s, y, y)``, contiguous in the shape of x. s has the dtype that x and branch
        promote to, so a float32 stream stays float32 beside a bfloat16 branch; y has that of s,
        under autocast float32.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    _check_devices(x, branch, factor, weight, bias, branch_bias)
    if branch is not None and branch_bias is not None and branch_bias.ndim == 3:
        served = _fitting(branch_bias, x, 1) is not None and _fit(x, weight, bias, eps)
        if not served:
            branch, branch_bias = with_gradient_of(branch, branch_bias), None
    fits = (
        users in (1, 2)
        and (branch is None or _is_branch(branch, x))
        and (branch is not None or (factor is None and branch_bias is None))
        and (factor is None or (factor.numel() == len(x) and factor.is_floating_point()))
        and (branch_bias is None or branch_bias.ndim == 3 or _is_row(branch_bias, x))
    )
    if not (fits and _fit(x, weight, bias, eps)):
        return reference.residual_layer_norm(
            x, branch, factor, weight, bias, eps, branch_bias, users
        )
    own = _fitting(stand_in, x, 2)
    return _norm(x, branch, factor, weight, bias, eps, branch_bias, own, users)


def _is_branch(y: Tensor, x: Tensor) -> bool:
    return y.shape == x.shape and y.is_floating_point() and y.dtype != torch.float64


def _fitting(stand_in: Tensor | None, x: Tensor, parameters: int) -> Tensor | None:
    """A stand-in that has as many parts as the kernel leaves of these tokens, or None."""
    if stand_in is None or not stand_in.requires_grad or torch.compiler.is_compiling():
        return None
    parts = summing_programs(x.shape[:-1].numel(), x.shape[-1])[0]
    return stand_in if stand_in.shape == (parts, parameters, x.shape[-1]) else None
