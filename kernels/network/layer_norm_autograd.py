"""The two ways in which autograd meets the operators of LayerNorm.

Under ``torch.compile``, and where nothing learns, they are operators with gradients of their own.
In eager mode a class is around them: it may give its result to two users, whose gradients it gets
one by one and its kernel adds, and leave sums over the tokens in parts, see
:mod:`..common.stand_ins`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.row_sums import row_sums
from .layer_norm_ops import _layer_norm, _layer_norm_bwd, _residual_layer_norm


@dataclass(frozen=True)
class _Norm:
    """What backward has to know of a forward pass, beside its tensors; dtypes of the gradients."""

    eps: float
    normalised: torch.dtype
    of_x: torch.dtype
    of_branch: torch.dtype | None = None
    of_branch_bias: torch.dtype | None = None

    def gradients(
        self,
        saved: Sequence[Tensor | None],
        above: Tensor | None,
        grads: Sequence[Tensor | None],
        learns: bool,
        biased: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Of x and branch, then parts, see ``fastseg::layer_norm_bwd``.

        Args:
            saved: rows that were normalised, factors and weight.
            above: gradient of the rows by other ways.
            grads: of what was normalised, of up to two users.
            learns: weight or bias has a gradient.
            biased: branch_bias has one.
        """
        x, factor, weight = saved
        assert x is not None
        first, *rest = [grad for grad in grads if grad is not None] or [
            torch.zeros_like(x, dtype=self.normalised)
        ]
        # without factors and in one dtype both have the same gradient
        alike = factor is None and self.of_x == self.of_branch
        dx, dbranch, parts, of_bias = _layer_norm_bwd(
            first, rest[0] if rest else None, above, factor, x, weight, self.eps, self.of_x,
            None if alike else self.of_branch, learns or biased, biased,
        )  # fmt: skip
        return dx, dx if alike else None if self.of_branch is None else dbranch, parts, of_bias


def _added_up(
    parts: Tensor | None, affine: torch.dtype, of_bias: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of weight, bias and branch_bias from those parts that there are, by a launch."""
    matrices = [] if parts is None else [parts[:, 0], parts[:, 1]]
    dtypes = [affine] * len(matrices)
    if of_bias is not None:
        assert dtype is not None
        matrices.append(of_bias[:, 0])
        dtypes.append(dtype)
    sums: list[Tensor | None] = [*row_sums(matrices, dtypes)] if matrices else []
    if parts is None:
        sums = [None, None, *sums]
    return sums[0], sums[1], sums[2] if len(sums) > 2 else None


def _context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, eps, dtype = inputs
    ctx.save_for_backward(x, None, weight)
    ctx.norm = _Norm(eps, dtype, x.dtype)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved, learns = ctx.saved_tensors, any(ctx.needs_input_grad[1:3])
    dx, _, parts, _ = ctx.norm.gradients(saved, None, [grad], learns, False)
    of_affine = _added_up(parts if learns else None, saved[2].dtype, None, None)[:2]
    return dx, *of_affine, None, None


_layer_norm.register_autograd(_backward, setup_context=_context)


def _residual_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, branch, factor, weight, _, eps, dtype, branch_bias = inputs
    ctx.save_for_backward(output[0], factor, weight)
    of_bias = None if branch_bias is None else branch_bias.dtype
    ctx.norm = _Norm(eps, dtype, x.dtype, branch.dtype, of_bias)
    # the last sum of a level is only normalised: no zeros are written and read for it
    ctx.set_materialize_grads(False)


def _residual_backward(
    ctx: Any, above: Tensor | None, grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved, learns, biased = (
        ctx.saved_tensors, any(ctx.needs_input_grad[3:5]), ctx.needs_input_grad[7],
    )  # fmt: skip
    dx, dbranch, parts, of_bias = ctx.norm.gradients(saved, above, [grad], learns, biased)
    *of_affine, of_bias = _added_up(
        parts if learns else None, saved[2].dtype,
        of_bias if biased else None, ctx.norm.of_branch_bias,
    )  # fmt: skip
    return dx, dbranch, None, *of_affine, None, None, of_bias


_residual_layer_norm.register_autograd(_residual_backward, setup_context=_residual_context)


class _Shared(torch.autograd.Function):
    """The sum, or x where there is no branch, and what is normalised, once for each user."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        factor: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        branch_bias: Tensor | None,
        stand_in: Tensor | None,
        norm: tuple[float, torch.dtype],
        users: int,
    ) -> tuple[Tensor, ...]:
        eps, dtype = norm
        total, out = normalised(x, branch, factor, weight, bias, eps, dtype)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, factor, weight)
        of_bias = None if branch_bias is None else branch_bias.dtype
        ctx.norm = _Norm(eps, dtype, x.dtype, None if branch is None else branch.dtype, of_bias)
        ctx.in_parts = branch_bias is not None and branch_bias.ndim == 3
        same = [out.detach() for _ in range(users - 1)]
        return total.detach() if branch is None else total, out, *same

    @staticmethod
    def backward(ctx: Any, above: Tensor | None, *grads: Tensor | None) -> Any:
        # once, as checkpoints want it
        saved = ctx.saved_tensors
        learns, biased, in_parts = (
            any(ctx.needs_input_grad[3:5]), ctx.needs_input_grad[5], ctx.needs_input_grad[6],
        )  # fmt: skip
        dx, dbranch, parts, of_bias = ctx.norm.gradients(
            saved, above, grads, learns or in_parts, biased
        )
        dweight, dbias, dbranch_bias = _added_up(
            parts if learns else None, saved[2].dtype,
            of_bias if biased and not ctx.in_parts else None, ctx.norm.of_branch_bias,
        )  # fmt: skip
        if ctx.in_parts:
            dbranch_bias = of_bias if biased else None
        of_stand_in = parts if in_parts else None
        return dx, dbranch, None, dweight, dbias, dbranch_bias, of_stand_in, None, None


def normalised(
    x: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    branch_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum, or x itself where there is no branch, and what is normalised, by the operators."""
    if branch is None:
        return x, _layer_norm(x, weight, bias, eps, dtype)
    found: tuple[Tensor, Tensor] = _residual_layer_norm(
        x, branch, factor, weight, bias, eps, dtype, branch_bias
    )
    return found


def normalised_for_users(
    x: Tensor,
    branch: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    branch_bias: Tensor | None,
    stand_in: Tensor | None,
    users: int,
) -> tuple[Tensor, ...]:
    """:func:`normalised`, the latter once for each of two users, see `_Shared`."""
    if stand_in is not None:
        # which has their gradients
        weight, bias = weight.detach(), bias.detach()
    found: tuple[Tensor, ...] = _Shared.apply(  # type: ignore[no-untyped-call]
        x, branch, factor, weight, bias, branch_bias, stand_in, (eps, dtype), users
    )
    return found
