"""Launches on the GPU of a tensor, for processes with several."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Within the block launches go to the GPU of the tensor, not to the current one."""
    guard: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return guard
