"""Accuracy that a fast operator has to reach: the error of plain PyTorch in the same dtype."""

from __future__ import annotations

from torch import Tensor


def assert_as_accurate(result: Tensor, eager: Tensor, truth: Tensor, slack: float) -> None:
    """Fail unless ``result`` is as close to the truth as plain PyTorch, element by element.

        |result - truth| <= |eager - truth| + slack

    A fixed tolerance is either too loose for easy elements or too tight for hard ones; the error
    that plain PyTorch makes in the same dtype is the measure of how hard an element is.

    Args:
        result: output of the fast operator.
        eager: output of the definition for the same inputs in the same dtype.
        truth: output of the definition for the inputs in float64.
        slack: absolute, in the units of the tensors.

    Raises:
        AssertionError: the shapes differ, or an element is further from the truth, or NaN.
    """
    if not result.shape == eager.shape == truth.shape:
        raise AssertionError(
            f"shapes differ: result {tuple(result.shape)}, eager {tuple(eager.shape)}, "
            f"truth {tuple(truth.shape)}"
        )
    error = (result.detach().double() - truth.detach().double()).abs()
    allowed = (eager.detach().double() - truth.detach().double()).abs() + slack
    wrong = ~(error <= allowed)  # written so that NaN is wrong
    if wrong.any():
        excess = (error - allowed).nan_to_num(nan=float("inf")).where(wrong, -1.0)
        worst = int(excess.argmax())
        got, wanted, plain = (x.detach().flatten()[worst].item() for x in (result, truth, eager))
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements are further from the truth than "
            f"plain PyTorch plus {slack:g}; the worst, at flat index {worst}: result {got:g}, "
            f"truth {wanted:g}, plain PyTorch {plain:g}"
        )
