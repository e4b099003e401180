"""LayerNorm of tokens, alone and behind the sum of a residual stream and its branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, stand_in: Tensor | None = None
) -> Tensor:
    """Normalise each token over its channels.

        y[r, c] = (x[r, c] - mean_c x[r]) / sqrt(var_c x[r] + eps) * weight[c] + bias[c]

    with the biased variance. This is ``torch.nn.functional.layer_norm``, in its own arithmetic:
    statistics in float32 at least, and dtypes by the rules of autocast where it is on.

    Args:
        x: tokens ``[N, ..., C]``, any float dtype.
        weight: ``[C]``.
        bias: ``[C]``.
        eps: added to the variance.
        stand_in: for the kernels alone; here weight and bias have their gradients themselves.

    Returns:
        The shape of x; no tokens give an empty tensor.

    Raises:
        ValueError: x is no float tensor of at least two axes, C is 0, or weight or bias is not
            ``[C]``.
    """
    check_tokens(x, weight, bias)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


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

    Args:
        x: tokens ``[N, ..., C]`` of the stream, any float dtype.
        branch: the same shape, any float dtype; None: nothing is added, and s is x.
        factor: N numbers, such as ``[N, 1, 1, 1]``: stochastic depth, constant; None for ones.
        weight: ``[C]``.
        bias: ``[C]``.
        eps: added to the variance.
        branch_bias: ``[C]``, what the branch has in it already as a constant, the bias of the layer
            that made it. It changes no value; its gradient is that of the branch, summed over
            the tokens. None for none.
        users: 1 or 2, how many users y has; each gets it.
        stand_in: as for :func:`layer_norm`.

    Returns:
        ``(s, y)`` or ``(s, y, y)``, in the shape of x; s in the dtype that x and branch promote to.

    Raises:
        ValueError: as for :func:`layer_norm`, branch does not have the shape of x, factor is not a
            number per image, branch_bias is not ``[C]``, one of both is without a branch, or the
            users are not 1 or 2.
    """
    check_tokens(x, weight, bias)
    if users not in (1, 2):
        raise ValueError(f"expected 1 or 2 users, got {users}")
    if branch is None:
        if factor is not None or branch_bias is not None:
            raise ValueError("expected a branch for factor or branch_bias, got None")
        return x, *[F.layer_norm(x, (x.shape[-1],), weight, bias, eps)] * users
    if branch.shape != x.shape or not branch.is_floating_point():
        raise ValueError(
            f"expected a branch of floats {list(x.shape)} like the tokens, "
            f"got {branch.dtype} {list(branch.shape)}"
        )
    if branch_bias is not None:
        if branch_bias.shape != x.shape[-1:] or not branch_bias.is_floating_point():
            raise ValueError(
                f"expected a branch_bias of floats [{x.shape[-1]}], "
                f"got {branch_bias.dtype} {list(branch_bias.shape)}"
            )
        # zeros that have the gradient of the bias
        branch = branch + (branch_bias - branch_bias.detach()).to(branch.dtype)
    if factor is None:
        total = x + branch
    else:
        if factor.numel() != len(x) or not factor.is_floating_point():
            raise ValueError(
                f"expected a float factor for each of {len(x)} images, "
                f"got {factor.dtype} {list(factor.shape)}"
            )
        each = factor.detach().reshape(-1, *[1] * (x.ndim - 1))
        # a float32 factor does not widen the sum
        each = each.to(torch.promote_types(x.dtype, branch.dtype))
        total = torch.addcmul(x, branch, each)
    return total, *[F.layer_norm(total, (x.shape[-1],), weight, bias, eps)] * users


def check_tokens(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse what is no tokens ``[N, ..., C]`` with a weight and a bias ``[C]``.

    Raises:
        ValueError: the message has the shapes.
    """
    if x.ndim < 2 or x.shape[-1] == 0 or not x.is_floating_point():
        raise ValueError(f"expected float tokens [N, ..., C], got {x.dtype} {list(x.shape)}")
    if not weight.shape == bias.shape == x.shape[-1:]:
        raise ValueError(
            f"expected weight and bias [{x.shape[-1]}] for tokens {list(x.shape)}, "
            f"got {list(weight.shape)} and {list(bias.shape)}"
        )
