"""Depthwise 3x3, bias and GELU of the Mix-FFN, at the hidden tokens of every level of MiT-B0.

Providers: ``eager`` is the definition, torch's channels-last convolution and its GELU; ``compile``
the same under ``torch.compile``, which fuses what stands around the convolution; ``fused`` are the
kernels. Tokens ``[N, h, w, C]`` are those of two samples of four modalities at 1024 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import pytest
import torch
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error
from fastseg.kernels import depthwise_conv_gelu, reference

TESTS = ["test_depthwise_conv_gelu.py"]
RATIO = 4  # hidden channels over those of the level
SLACK = {torch.bfloat16: 8e-3, torch.float32: 1e-5}
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
PROVIDERS: dict[str, Layer] = {"eager": reference.depthwise_conv_gelu}
if shapes.ON_GPU:
    PROVIDERS["fused"] = depthwise_conv_gelu
PROVIDERS["compile"] = torch.compile(reference.depthwise_conv_gelu, dynamic=False)
SHAPE = shapes.GRID[0]
ROWS = [
    (level, dtype, mode, provider)
    for mode in ("fwd+bwd", "fwd")
    for dtype in shapes.DTYPES
    for level in range(1, 5)
    for provider in PROVIDERS
    # float32 and the forward pass alone say the same of every level
    if level == 1 or (mode, dtype) == ("fwd+bwd", shapes.DTYPES[0])
]


@lru_cache(maxsize=1)
def problem(level: int, dtype: torch.dtype) -> list[Tensor]:
    """Tokens, weight, bias and an upstream gradient; rows that follow each other share them."""
    m, b, c, h, w = SHAPE.levels[level - 1]
    size, hidden = (m * b, h, w, RATIO * c), RATIO * c
    generator = torch.Generator(shapes.DEVICE).manual_seed(level)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=shapes.DEVICE).to(dtype)

    return [normal(*size), normal(hidden, 1, 3, 3) / 3, normal(hidden), normal(*size)]


def forward(layer: Layer, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The layer's tokens."""
    with torch.no_grad():
        return (layer(*inputs[:3]),)


def both_ways(layer: Layer, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The same and the gradients of tokens, weight and bias."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    out = layer(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, inputs[3]))


@lru_cache(maxsize=1)
def wanted(level: int, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The definition's results, in the dtype and in float64."""
    inputs = problem(level, dtype)
    return (
        both_ways(reference.depthwise_conv_gelu, inputs),
        both_ways(reference.depthwise_conv_gelu, in_double(inputs)),
    )


@pytest.mark.parametrize(("level", "dtype", "mode", "provider"), ROWS, ids=str)
def bench_dwconv_gelu(
    measure: Measure, level: int, dtype: torch.dtype, mode: str, provider: str
) -> None:
    inputs, layer = problem(level, dtype), PROVIDERS[provider]
    run = both_ways if mode == "fwd+bwd" else forward

    def check() -> float:
        results = run(layer, inputs)
        plain, exact = (found[: len(results)] for found in wanted(level, dtype))
        return largest_error(results, plain, exact, SLACK[dtype])

    n, h, w, c = inputs[0].shape
    measure(
        partial(run, layer, inputs),
        provider=provider,
        case=f"level{level}-{n}x{h}x{w}x{c}",
        mode=mode,
        dtype=dtype,
        # x in, y out; x and dy in, dx out: what a fusion of everything would move
        bytes_moved=(5 if mode == "fwd+bwd" else 2) * inputs[0].nbytes,
        check=check,
    )
