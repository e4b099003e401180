"""The kernels of attention with spatial reduction, as the launchers launch them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from bench.machine_code.aot_proto_pool import recorded
from fastseg.kernels.network import attention

KERNELS = tuple(f"_reduced_attention_{part}_kernel" for part in ("fwd", "query", "key", "sum"))
# queries, keys, heads and channels of a head; 1024 pixels but for the last
SIZES = {
    "nano-level1": (65536, 1024, 1, 16),
    "b0-level1": (65536, 1024, 1, 32),
    "b0-level4": (1024, 1024, 8, 32),
    "b2-level1": (65536, 1024, 1, 64),
    "b0-odd": (70 * 53, 72, 2, 32),
}
# registers and bytes of shared memory; what was measured, with some room
REGISTERS = {"fwd": 255, "query": 255, "key": 255, "sum": 48}
SHARED = {"fwd": 80_000, "query": 100_000, "key": 110_000, "sum": 4096}


def cases() -> list[tuple[Any, ...]]:
    """Levels of the encoders in bf16, the first in the other dtypes, too, and an odd image."""
    found: list[tuple[Any, ...]] = []
    for size in SIZES:
        found += _cases(size, "bf16", torch.bfloat16)
    found += _cases("b0-level1", "fp16", torch.float16)
    for size in ("b0-level1", "b2-level1"):
        found += _cases(size, "fp32", torch.float32)
    found += _cases("b0-level1", "tf32", torch.float32, tf32=True)
    return found


def _cases(size: str, name: str, dtype: torch.dtype, tf32: bool = False) -> list[tuple[Any, ...]]:
    n, (length, keys, heads, d) = 8, SIZES[size]
    q = torch.empty((n, length, heads, d), dtype=dtype, device="meta")
    kv = torch.empty((n, keys, 2, heads, d), dtype=dtype, device="meta")
    with (
        mock.patch.object(attention, "_precision", return_value="tf32" if tf32 else "ieee"),
        recorded(attention, *KERNELS) as launches,
    ):
        out, lse = attention.attention_forward(q, kv)
        attention.attention_backward(out, q, kv, out, lse)
    found = []
    for kernel, arguments, options in launches:
        part = kernel.__name__.split("_")[-2]
        warps, stages = options.pop("num_warps"), options.pop("num_stages", 3)
        budget = REGISTERS[part], SHARED[part]
        found.append((f"{size}-{name}", kernel, arguments, options, warps, stages, *budget))
    return found
