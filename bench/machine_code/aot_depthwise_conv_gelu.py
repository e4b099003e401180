"""The kernels of the depthwise convolution with GELU, as the launchers launch them."""

from __future__ import annotations

from typing import Any

import torch

from bench.harness.shapes import STRIDES, WIDTHS
from bench.machine_code.aot_proto_pool import recorded
from fastseg.kernels.network import depthwise

KERNELS = {
    # registers and bytes of shared memory
    "_depthwise_conv_gelu_fwd_kernel": (104, 0),
    "_depthwise_conv_gelu_bwd_kernel": (168, 2048),
    "_depthwise_conv_gelu_input_kernel": (104, 2048),
}
RATIO = 4  # hidden channels over the level's


def cases() -> list[tuple[Any, ...]]:
    """The widest map of a network in both dtypes, and what else may come."""
    found: list[tuple[Any, ...]] = []

    def add(
        name: str,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype = torch.bfloat16,
        weights: torch.dtype | None = None,
        biased: bool = False,
    ) -> None:
        c = shape[3]
        x = torch.empty(shape, dtype=dtype, device="meta")
        weight = torch.empty((c, 1, 3, 3), dtype=weights or dtype, device="meta")
        bias = torch.empty(c, dtype=weights or dtype, device="meta")
        with recorded(depthwise, *KERNELS) as launches:
            depthwise.convolve_forward(x, weight, bias)
            depthwise.convolve_backward(x, x, weight, bias, bias if biased else None)
        for kernel, arguments, options in launches:
            warps = options.pop("num_warps")
            budget = KERNELS[kernel.__name__]
            found.append((name, kernel, arguments, options, warps, 3, *budget))

    level = (8, 1024 // STRIDES[0], 1024 // STRIDES[0], RATIO * WIDTHS["b0"][0])
    add("b0-1024-level1-bf16", level)
    add("b0-1024-level1-fp32", level, torch.float32)
    # with the gradient of a bias in the tokens
    add("b0-1024-level1-bf16-input-bias", level, biased=True)
    add("b0-1024-level1-fp32-input-bias", level, torch.float32, biased=True)
    # one element at a time, and weights as they are under autocast
    add("unaligned-bf16-weights-fp32", (1, 5, 7, 33), weights=torch.float32)
    return found
