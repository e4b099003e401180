"""The kernel behind the gradients of queries, keys and values, as its launcher launches it."""

from __future__ import annotations

from typing import Any

import torch

from bench.machine_code.aot_proto_pool import recorded
from fastseg.kernels.network import split_tokens

REGISTERS, SHARED = 96, 8192
KERNEL = "_split_tokens_bwd_kernel"


def cases() -> list[tuple[Any, ...]]:
    """Levels at 1024 pixels: behind torch's attention, behind ours, and an unaligned width."""
    found: list[tuple[Any, ...]] = []

    def add(name: str, sizes: tuple[int, int, int, int], dtype: torch.dtype, join: bool) -> None:
        length, keys, heads, d = sizes
        q = torch.empty((8, length, heads, d), dtype=dtype, device="meta")
        k = v = torch.empty((8, keys, heads, d), dtype=dtype, device="meta")
        if not join:
            k, v = torch.empty((8, keys, 2, heads, d), dtype=dtype, device="meta").unbind(2)
        with recorded(split_tokens, KERNEL) as launches:
            split_tokens.launch_backward(q, k, v, join, True, True)
        for kernel, arguments, options in launches:
            warps = options.pop("num_warps")
            found.append((name, kernel, arguments, options, warps, 3, REGISTERS, SHARED))

    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        add(f"b0-level1-{name}", (65536, 1024, 1, 32), dtype, True)
        add(f"b0-level1-{name}-sums", (65536, 1024, 1, 32), dtype, False)
        add(f"b2-level4-{name}", (1024, 1024, 8, 64), dtype, True)
    add("C33-bf16", (65536, 1024, 1, 33), torch.bfloat16, True)
    return found
