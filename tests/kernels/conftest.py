"""Fixtures of the kernels' tests: a device, the switch to the kernels, poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastseg.kernels.common import switch
from tests.support import gpu_arithmetic
from tests.support.poisoned_memory import poisoned_memory

__all__ = ["poisoned_memory"]


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: the GPU, else the CPU under Triton's interpreter."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not switch.INTERPRET:
        pytest.skip("no GPU, and TRITON_INTERPRET=1 was not set when Triton was imported")
    return torch.device("cpu")


@pytest.fixture
def kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The public operators use their kernels, or raise, for the length of the test.

    The interpreter computes with the rounding of a GPU: what passes here passes there.
    """
    if switch.INTERPRET:
        gpu_arithmetic.emulate(monkeypatch)
    with switch.force_kernels():
        yield


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that the interpreter launches from here on."""
    if not switch.INTERPRET:
        pytest.skip("counts the interpreter's launches")
    from triton.runtime import interpreter

    names: list[str] = []
    run_grid = interpreter.GridExecutor.__call__

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(self.fn.__name__)
        return run_grid(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", count)
    return names
