"""Stand-ins for parameters, whose gradients are sums over all tokens and come in parts.

A kernel that sums over tokens leaves a part of the sum for each of its programs, and a second
launch adds the parts up. Autograd wants the whole sum right behind the kernel, a launch for each
layer. A stand-in ``[P, n, C]`` of n parameters ``[C]`` has the parts themselves as its gradient,
so that one launch adds up the parts of all stand-ins that were made together:

    dparameter_j = sum_p dstand_in[p, j]

It has no values, and those of the parameters do not pass through it: a kernel that takes one reads
the parameters, detached, beside it. Imports without Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .switch import HAS_TRITON, runs_on

if HAS_TRITON:
    from .row_sums import DTYPES, row_sums


class _StandIns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, parts: Sequence[int], sizes: Sequence[int], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.sizes, ctx.dtypes = sizes, [x.dtype for x in parameters]
        found, idle, first = [], [], 0
        for count, size in zip(parts, sizes, strict=True):
            group = parameters[first : first + size]
            # an element, which nobody reads, under the shape that its gradient will have
            one = group[0].new_empty(1, dtype=torch.float32)
            found.append(one.expand(count, size, group[0].numel()))
            if not any(ctx.needs_input_grad[2 + first : 2 + first + size]):
                idle.append(found[-1])
            first += size
        ctx.mark_non_differentiable(*idle)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        each = [
            None if grad is None else grad[:, j]
            for grad, size in zip(grads, ctx.sizes, strict=True)
            for j in range(size)
        ]
        there = {i: x for i, x in enumerate(each) if x is not None and ctx.needs_input_grad[2 + i]}
        found: dict[int, Tensor] = {}
        if there:
            sums = row_sums(list(there.values()), [ctx.dtypes[i] for i in there])
            found = dict(zip(there, sums, strict=True))
        return (None, None, *(found.get(i) for i in range(len(each))))


class _IntoParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stand_in: Tensor) -> Tensor:
        ctx.parts = stand_in.shape
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        parts = grad.new_zeros(ctx.parts, dtype=torch.float32)
        parts[0, 0] = grad.flatten(0, -2).sum(0, dtype=torch.float32)
        return grad, parts


def are_wanted(x: Tensor) -> bool:
    """True if stand-ins are worth it for a layer of these tokens: kernels serve it, and it learns.

    ``torch.compile`` arranges the sums of a graph by itself.
    """
    learns = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return learns and x.dtype != torch.float64 and runs_on(x)


def serve(parameter: Tensor) -> bool:
    """True if a parameter may have a stand-in."""
    return parameter.ndim == 1 and parameter.numel() > 0 and parameter.dtype in DTYPES


def stand_ins(groups: Sequence[Sequence[Tensor]], parts: Sequence[int]) -> tuple[Tensor, ...]:
    """A stand-in for each group of parameters; one launch adds the parts of all gradients up.

    It is for layers whose backward passes all run before any of these gradients is needed: where
    parameters are gathered and freed block by block, those of a block.

    Args:
        groups: parameters ``[C]`` of one C and device, one group for a kernel.
        parts: of each group, how many parts the kernel leaves.

    Returns:
        ``[P, n, C]`` float32 for each group, without values; one without a gradient where nothing
        of its group learns.
    """
    sizes = [len(group) for group in groups]
    found: tuple[Tensor, ...] = _StandIns.apply(  # type: ignore[no-untyped-call]
        list(parts), sizes, *(x for group in groups for x in group)
    )
    return found


def with_gradient_of(x: Tensor, constant: Tensor) -> Tensor:
    """Tokens ``[..., C]`` that have something in them already as a constant, with its gradient.

    Args:
        x: the tokens, with the values that they have.
        constant: a parameter ``[C]``, or the stand-in ``[P, 1, C]`` of one.
    """
    if constant.ndim == 1:
        # zeros that have the gradient of the parameter
        return x + (constant - constant.detach()).to(x.dtype)
    found: Tensor = _IntoParts.apply(x, constant)  # type: ignore[no-untyped-call]
    return found
