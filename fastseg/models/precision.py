"""The arithmetic of the networks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from fastseg.choice import Choice

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", Precision]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_AMPERE = (8, 0)


def best_precision(device: torch.device) -> Choice[Precision]:
    """Precision that ``auto`` stands for on a device, and the reason.

    bf16 where the device multiplies it faster than float32. fp16 is never chosen: its range needs a
    loss scale, and a step is lost each time that is too high.
    """
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= _AMPERE:
            return Choice("bf16", "this GPU has tensor cores for it")
        return Choice(
            "fp32", "this GPU has no tensor cores for bf16; --precision fp16 may be faster"
        )
    # torch 2.10 cannot say
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if known.get("avx512_bf16") or known.get("amx_bf16"):
        return Choice("bf16", "this CPU has instructions for it")
    return Choice("fp32", "no instructions for bf16 are known of this CPU")


def reduced_dtype(precision: str) -> torch.dtype | None:
    """The short dtype of a precision; None for fp32."""
    return _DTYPES[precision]


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """The context of what has to keep its dtype: no autocast.

    The kind ``meta`` has none; torch 2.11 cannot compile the question who does.
    """
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of every forward pass: a short dtype where it is safe, or as stored for fp32."""
    dtype = reduced_dtype(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
