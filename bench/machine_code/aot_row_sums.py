"""The sums of parameters' gradients, as a norm alone and a block of the encoder launch them."""

from __future__ import annotations

from typing import Any

import torch

from bench.machine_code.aot_proto_pool import recorded
from fastseg.kernels.common import row_sums

REGISTERS, SHARED = 96, 8192


def cases() -> list[tuple[Any, ...]]:
    """Weight and bias of a norm, and all vectors of a block with and without spatial reduction."""
    found: list[tuple[Any, ...]] = []

    def parts(count: int, size: int, channels: int) -> list[torch.Tensor]:
        made = torch.empty((count, size, channels), dtype=torch.float32, device="meta")
        return [made[:, j] for j in range(size)]

    def add(name: str, dtype: torch.dtype, matrices: list[torch.Tensor]) -> None:
        out = [x.new_empty(x.shape[1], dtype=dtype) for x in matrices]
        with recorded(row_sums, "_row_sums_kernel") as launches:
            row_sums.launch_row_sums(matrices, out)
        for kernel, arguments, options in launches:
            warps = options.pop("num_warps")
            found.append((name, kernel, arguments, options, warps, 3, REGISTERS, SHARED))

    def block(channels: int, own: int, reduced: int) -> list[torch.Tensor]:
        norms = parts(own, 2, channels) + parts(own, 2, channels)
        norms += parts(reduced, 2, channels) if reduced != own else []
        biases = parts(own, 1, channels) + parts(reduced, 1, 2 * channels)
        return norms + biases + parts(own, 1, channels) + parts(own, 1, channels)

    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        add(f"norm-C64-{name}", dtype, parts(1024, 2, 64))
        add(f"block-b0-level1-{name}", dtype, block(32, 1024, 32))
    add("block-b2-level4-bf16", torch.bfloat16, block(512, 256, 256))
    add("norm-C33-bf16", torch.bfloat16, parts(1024, 2, 33))
    return found
