"""Time that the work of a call takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def elapsed_ms(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds until a call and everything that it launched on ``device`` is done.

    Work that was launched before and is still running counts, too: call it once to warm up.
    """
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - began)
