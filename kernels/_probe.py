"""The smallest kernel there is, to find out whether Triton can build and launch any."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ._launch import on_device_of


@triton.jit
def _add_one(x_ptr: Any) -> None:
    tl.store(x_ptr, tl.load(x_ptr) + 1)


def launch_one(device: torch.device) -> None:
    """Build a kernel, launch it and look at what it wrote.

    Raises:
        Exception: whatever Triton, its compiler or the driver raise.
    """
    x = torch.zeros(1, device=device)
    with on_device_of(x):
        _add_one[(1,)](x)
    if x.item() != 1:
        raise RuntimeError("a kernel was launched and has written nothing")
