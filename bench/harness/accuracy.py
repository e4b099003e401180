"""The check that comes before a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastseg.kernels.testing import assert_as_accurate


def value_and_gradients(
    loss: Callable[[list[Tensor]], Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """A scalar loss of some tensors and its gradients, both passes."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = loss(leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def in_double(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same numbers in float64."""
    return [x.double() for x in tensors]


def largest_error(
    results: Sequence[Tensor], eager: Sequence[Tensor], truth: Sequence[Tensor], slack: float
) -> float:
    """Hold values and gradients to the rule of the tests; returns how far off they are.

    Args:
        results: what a provider returned.
        eager: what the reference returned for the same inputs in the same dtype.
        truth: what the reference returned for the inputs in float64.
        slack: of ``assert_as_accurate``, relative to the largest true element of each tensor.

    Returns:
        The largest over the tensors of ``max |result - truth| / max |truth|``.

    Raises:
        AssertionError: a result is further from the truth than eager plus slack.
    """
    worst = 0.0
    for result, plain, exact in zip(results, eager, truth, strict=True):
        scale = max(float(exact.abs().max()), 1e-30) if exact.numel() else 1.0
        assert_as_accurate(result, plain, exact, slack * scale)
        if exact.numel():
            worst = max(worst, float((result.double() - exact).abs().max()) / scale)
    return worst
