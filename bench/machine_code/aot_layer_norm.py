"""The kernels of LayerNorm, as the launchers of the operators launch them."""

from __future__ import annotations

from typing import Any

import torch

from bench.machine_code.aot_proto_pool import recorded
from fastseg.kernels.network import layer_norm_launch

KERNELS = tuple(f"_layer_norm_{part}_kernel" for part in ("fwd", "bwd"))
# registers and bytes of shared memory
BUDGETS = {
    "_layer_norm_fwd_kernel": (96, 8192),
    "_layer_norm_bwd_kernel": (144, 16_384),
}
BF16, FP32 = torch.bfloat16, torch.float32


def launches_of(
    channels: int,
    side: int,
    dtype: torch.dtype,
    branch: torch.dtype | None = None,
    factor: bool = False,
    weights: torch.dtype | None = None,
    biased: bool = False,
    users: int = 1,
) -> list[tuple[Any, Any, Any]]:
    """Both passes of a LayerNorm of eight images, behind a sum if there is a branch."""

    def tokens(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty((8, side, side, channels), dtype=dtype, device="meta")

    # short tokens with float32 weights are those of autocast, which has a float32 result
    x, out = tokens(dtype), tokens(weights or dtype)
    weight = torch.empty(channels, dtype=weights or dtype, device="meta")
    other = None if branch is None else tokens(branch)
    each = torch.empty((8, 1, 1, 1), device="meta") if factor else None
    above = None if other is None else tokens(dtype)
    of_branch = other if factor or branch != dtype else None
    with recorded(layer_norm_launch, *KERNELS) as launches:
        layer_norm_launch.launch_forward(x, other, each, weight, weight, 1e-6, above, out)
        layer_norm_launch.launch_backward(
            out,
            out if users == 2 else None,
            above,
            each,
            x,
            weight,
            1e-6,
            tokens(dtype),
            of_branch,
            *layer_norm_launch.new_parts(x, True, biased),
        )
    return launches


def cases() -> list[tuple[Any, ...]]:
    """Levels of the backbones at 1024 pixels, in every form that a block or a level meets."""
    found: list[tuple[Any, ...]] = []

    def add(name: str, *arguments: Any, more: int = 0, **options: Any) -> None:
        for kernel, values, constants in launches_of(*arguments, **options):
            # forward is the same for any number of users
            if kernel is layer_norm_launch._layer_norm_fwd_kernel and options.get("users") == 2:
                continue
            warps = constants.pop("num_warps")
            registers, shared = BUDGETS[kernel.__name__]
            found.append((name, kernel, values, constants, warps, 3, registers + more, shared))

    for channels, side in ((32, 256), (160, 64), (512, 32)):
        add(f"C{channels}-bf16-sum-factors", channels, side, BF16, BF16, True)
    for channels, side in ((32, 256), (320, 64)):
        add(f"C{channels}-bf16", channels, side, BF16)
        add(f"C{channels}-bf16-sum", channels, side, BF16, BF16)
        add(f"C{channels}-fp32-sum-factors", channels, side, FP32, FP32, True)
    # with the gradient of a bias in the branch
    add("C32-bf16-sum-factors-bias", 32, 256, BF16, BF16, True, biased=True)
    add("C320-fp32-sum-factors-bias", 320, 64, FP32, FP32, True, biased=True)
    # in front of attention: two users, and the bias of the Mix-FFN before
    for channels, side in ((32, 256), (160, 64), (512, 32)):
        name = f"C{channels}-bf16-sum-factors-bias-users"
        add(name, channels, side, BF16, BF16, True, biased=True, users=2)
    add("C320-fp32-sum-factors-bias-users", 320, 64, FP32, FP32, True, biased=True, users=2)
    # autocast: products in bfloat16, a float32 stream and branches in bfloat16
    add("C32-bf16-fp32-weights", 32, 256, BF16, weights=FP32)
    add("C128-fp32-bf16-sum-factors", 128, 128, FP32, BF16, True)
    # one element at a time
    add("C33-bf16-sum-factors", 33, 256, BF16, BF16, True, more=112)
    return found
