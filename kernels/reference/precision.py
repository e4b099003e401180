"""Precision that the definitions compute in: float64 stays, every other dtype goes to float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def upcast(x: Tensor) -> Tensor:
    """``x`` in the precision of the arithmetic: float64 stays, everything else becomes float32.

    A softmax divergence of nearly equal distributions is a difference of nearly equal numbers:
    bfloat16 would leave nothing of it.
    """
    return x if x.dtype == torch.float64 else x.float()


def _first_tensor(*values: object) -> Tensor | None:
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (list, tuple)) and (found := _first_tensor(*value)) is not None:
            return found
    return None


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """Run ``function`` with autocast off, so that its matrix products keep their dtype."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        tensor = _first_tensor(*args, *kwargs.values())
        kind = "cpu" if tensor is None else tensor.device.type
        # meta has no autocast to switch off; torch 2.11 cannot compile the question who does
        with torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext():
            return function(*args, **kwargs)

    return wrapper
