"""Weights in another dtype or memory order; gradients come back in the dtypes of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [x.dtype for x in tensors]
        copies = _copies(tensors, [dtype] * len(tensors))
        # what does not learn stays without gradients, or passes would be recorded for nothing
        learns = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(*(x for x, y in zip(copies, learns, strict=True) if not y))
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = {i: grad for i, grad in enumerate(grads) if grad is not None}
        cast = _copies(list(there.values()), [ctx.dtypes[i] for i in there])
        found = dict(zip(there, cast, strict=True))
        return (None, *(found.get(i) for i in range(len(grads))))


def _copies(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    copies = [torch.empty_like(x, dtype=dtype) for x, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(copies, list(tensors))
    return copies


def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """``[x.to(dtype) for x in tensors]`` at once; the tensors themselves where all have it."""
    if all(x.dtype == dtype for x in tensors):
        return tensors
    if torch.compiler.is_compiling():
        # a compiler joins casts by itself, and that of torch 2.11 loses the class's gradients
        return [x.to(dtype) for x in tensors]
    copies: tuple[Tensor, ...] = _Copies.apply(dtype, *tensors)  # type: ignore[no-untyped-call]
    return copies


def to_channels_last(network: nn.Module) -> None:
    """``network.to(memory_format=torch.channels_last)``, which shapes alone do not support."""
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
