"""The kernels of the head, of its projections and of the sum of upsampled levels, as launched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from bench.harness.shapes import WIDTHS
from bench.machine_code.aot_proto_pool import DTYPES, recorded
from fastseg.kernels.network.head import mlp_head_launch, projections, upsampling

# registers and bytes of shared memory
BUDGETS = {
    "_upsampled_sum_fwd_kernel": (168, 4096),
    "_upsampled_sum_bwd_kernel": (96, 4096),
    "_head_sum_kernel": (192, 49_152),
    "_head_statistics_kernel": (128, 8192),
    "_head_logits_kernel": (255, 106_496),
    "_head_frozen_kernel": (255, 98_304),
    "_head_bwd_sums_kernel": (255, 98_304),
    "_head_bwd_reduce_kernel": (64, 4096),
    "_head_bwd_maps_kernel": (255, 98_304),
    "_head_bwd_weights_kernel": (128, 16_384),
    "_projections_fwd_kernel": (255, 65_536),
    "_projections_bwd_fuse_kernel": (255, 65_536),
    "_projections_bwd_kernel": (255, 65_536),
}
SUM = [name for name in BUDGETS if name.startswith("_upsampled")]
HEAD = [name for name in BUDGETS if name.startswith("_head")]
FOLD = [name for name in BUDGETS if name.startswith("_projections")]
# what depends on the width of the first level, and on the number of classes
WIDE = {f"_head_{name}_kernel" for name in ("sum", "frozen", "bwd_sums", "bwd_maps")}
CLASSES = {f"_head_{name}_kernel" for name in ("logits", "frozen", "bwd_sums", "bwd_maps")}
Launch = tuple[Any, Any, Any]


def maps(
    channels: int, sizes: Sequence[tuple[int, int]], b: int, dtype: torch.dtype
) -> list[Tensor]:
    """Maps ``[B, E, h, w]`` without memory, the channels last."""
    return [
        torch.empty((b, h, w, channels), dtype=dtype, device="meta").permute(0, 3, 1, 2)
        for h, w in sizes
    ]


def sizes_of(side: int) -> list[tuple[int, int]]:
    """Sizes of the four levels of an image."""
    return [(-(-side // stride), -(-side // stride)) for stride in (4, 8, 16, 32)]


def launches_of_sum(levels: Sequence[Tensor], size: tuple[int, int]) -> list[Launch]:
    """The sum and the gradients of its levels."""
    with recorded(upsampling, *SUM) as launches:
        out = upsampling.add_levels(levels, size)
        upsampling.gather_levels(out, [n for x in levels for n in x.shape[2:]])
    return launches


def launches_of_head(
    levels: Sequence[Tensor], first: Tensor, num_classes: int, frozen: bool = False
) -> list[Launch]:
    """Both passes of a head in training, or the frozen form."""

    def vectors(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    (b, e), c = levels[0].shape[:2], first.shape[1]
    projection = vectors(e, c).to(first.dtype)
    weight, bias, factor = vectors(num_classes, e), vectors(num_classes), vectors(b, e)
    norm, eps = (vectors(e), vectors(e)), 1e-5
    with ExitStack() as stack:
        found = stack.enter_context(recorded(mlp_head_launch, *HEAD))
        gathers = stack.enter_context(recorded(upsampling, *SUM))
        if frozen:
            mlp_head_launch.frozen(levels, first, projection, weight.to(first.dtype), bias)
            return found
        x, *parts = mlp_head_launch.fused_sum(levels, first, projection)
        running = *(vectors(e) for _ in range(2)), torch.empty((), dtype=torch.int64, device="meta")
        stats = mlp_head_launch.combined_statistics(*parts, running, 0.1)
        grad = mlp_head_launch.classified(x, stats, norm, factor, weight, bias, eps)
        sums, products, columns, *_ = mlp_head_launch.backward_sums(
            grad, x, first, stats, norm, factor, weight, eps
        )
        dx, _ = mlp_head_launch.backward_maps(
            grad, x, stats, sums, norm, factor, weight, projection, eps
        )
        mlp_head_launch.backward_weights(
            products, columns, stats, sums, norm[0], weight, bias, projection, eps
        )
        upsampling.gather_levels(dx, [n for y in levels for n in y.shape[2:]])
    return found + gathers


def launches_of_projections(
    channels: int, widths: Sequence[int], dtype: torch.dtype
) -> list[Launch]:
    """Both passes of the products of float32 parameters."""

    def matrices(*columns: int) -> list[Tensor]:
        return [torch.empty((channels, c), device="meta") for c in columns]

    (fuse,), weights = matrices(len(widths) * channels), matrices(*widths)
    biases = [torch.empty((channels,), device="meta") for _ in widths]
    with recorded(projections, *FOLD) as launches:
        products = projections.fold(fuse, weights, biases, dtype)
        projections.unfold(products, fuse, weights, biases)
    return launches


def cases() -> list[tuple[Any, ...]]:
    """The head's sizes at 1024 pixels, also with wider levels and with 150 classes."""
    found = []

    def append(name: str, launches: Sequence[Launch]) -> None:
        for kernel, arguments, options in launches:
            warps, stages = options.pop("num_warps"), options.pop("num_stages", 3)
            registers, shared = BUDGETS[kernel.__name__]
            found.append((name, kernel, arguments, options, warps, stages, registers, shared))

    def add(name: str, channels: int, side: int, b: int, dtype: torch.dtype) -> None:
        size, *deeper = sizes_of(side)
        append(name, launches_of_sum(maps(channels, deeper, b, dtype), size))

    def add_head(
        name: str,
        backbone: str,
        channels: int,
        dtype: torch.dtype,
        num_classes: int = 25,
        kernels: Collection[str] = HEAD,
    ) -> None:
        size, *deeper = sizes_of(1024)
        levels = maps(channels, deeper, 2, dtype)
        (first,) = maps(WIDTHS[backbone][0], [size], 2, dtype)
        launches = launches_of_head(levels, first, num_classes)
        launches += launches_of_head(levels, first, num_classes, frozen=True)
        append(name, [launch for launch in launches if launch[0].__name__ in kernels])

    for name, dtype in DTYPES.items():
        add(f"E768-1024-B2-{name}", 768, 1024, 2, dtype)
        add_head(f"b0-E768-1024-B2-{name}", "b0", 768, dtype)
        add_head(f"b2-E768-1024-B2-{name}", "b2", 768, dtype, kernels=WIDE)
        add_head(f"b2-E768-K150-1024-B2-{name}", "b2", 768, dtype, 150, kernels=CLASSES)
        append(f"E768-{name}", launches_of_projections(768, WIDTHS["b0"], dtype))
    return found
