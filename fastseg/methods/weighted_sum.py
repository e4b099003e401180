"""The loss of a step from its terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class _WeightedSum(torch.autograd.Function):
    """Three launches for any number of terms, and one backward."""

    @staticmethod
    def forward(ctx: Any, weights: list[float], *terms: Tensor) -> Tensor:
        ctx.weights = weights
        return torch.stack(torch._foreach_mul(terms, weights)).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch._foreach_mul([grad] * len(ctx.weights), ctx.weights)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """``sum_i w_i l_i`` over the terms in their order, an fp32 scalar."""
    factors = [weights[name] for name in terms]
    total: Tensor = _WeightedSum.apply(factors, *terms.values())  # type: ignore[no-untyped-call]
    return total
