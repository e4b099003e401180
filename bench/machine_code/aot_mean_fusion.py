"""The kernels of mean fusion, as their launchers launch them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.harness.shapes import PAPER, Shape
from bench.machine_code.aot_proto_pool import DTYPES, recorded
from fastseg.kernels.fusion import mean_launch

# registers and bytes of shared memory
BUDGETS = {"_mean_fusion_fwd_kernel": (64, 0), "_mean_fusion_bwd_kernel": (80, 0)}


def launches_of(shape: Shape, dtype: torch.dtype, branches: int, fusions: int) -> list[Any]:
    """Both passes, with gradients of so many branches; by marks of so many fusions, or 0."""

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    features = [empty(m, b, h, w, c).movedim(-1, 2) for m, b, c, h, w in shape.levels]
    size, levels = [shape.modalities, shape.batch], len(features)
    fused = None
    if fusions:
        fused = torch.empty((fusions, *size), dtype=torch.int64, device="meta")
    with recorded(mean_launch, *BUDGETS) as launches:
        means = mean_launch.fuse_levels(features, fused)
        gradients = [x for x in features for _ in range(branches)]
        sizes = [n for x in features for n in x.shape[2:]]
        number = [branches] * levels
        mean_launch.add_gradients(means, gradients, [1] * levels, number, fused, size, sizes)
    return launches


def cases() -> list[tuple[Any, ...]]:
    """The encoder's features at 1024 pixels."""
    found = []

    def add(name: str, shape: Shape, dtype: torch.dtype, fusions: int = 0) -> None:
        for kernel, arguments, options in launches_of(shape, dtype, 2, fusions):
            warps, stages = options.pop("num_warps"), options.pop("num_stages", 3)
            registers, shared = BUDGETS[kernel.__name__]
            found.append((name, kernel, arguments, options, warps, stages, registers, shared))

    for name, dtype in DTYPES.items():
        add(f"b0-1024-B2-M4-{name}", PAPER, dtype)
    add("b0-1024-B2-M4-P1-bf16", PAPER, torch.bfloat16, fusions=1)
    add("b0-1024-B2-M2-bf16", replace(PAPER, modalities=2), torch.bfloat16)
    return found
