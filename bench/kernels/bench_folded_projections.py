"""Products of the head's parameters in training: the folded projections, and all gradients.

Providers: ``eager`` is the definition, a product for every level, ``compile`` the definition under
``torch.compile``, ``batched`` one batched product of projections that are padded to the widest,
with the biases as one more column, and ``fused`` are the kernels. Parameters are float32, results
and their gradients in the dtype of the network. The bytes are those of the parameters, read by both
passes, of their gradients and of the products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import largest_error
from fastseg.kernels import folded_projections, reference

# relative to the largest element
SLACK = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
Fold = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], torch.dtype], list[Tensor]]


class Setting(NamedTuple):
    """Sizes of a head."""

    backbone: str
    channels: int

    def __str__(self) -> str:
        return f"{self.backbone}-E{self.channels}"


GRID = (
    [Setting("b0", 768), Setting("b0", 256), Setting("b2", 768)]
    if shapes.ON_GPU
    else [Setting("b0", 64)]
)
DTYPE = shapes.DTYPES[0]


def batched(
    fuse: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """One batched product for all levels."""
    widest, n = max(x.shape[1] for x in weights), len(weights)
    columns = [
        F.pad(torch.cat([bias[:, None], weight], 1), (0, widest - weight.shape[1]))
        for weight, bias in zip(weights, biases, strict=True)
    ]
    blocks = fuse.view(len(fuse), n, -1).transpose(0, 1).flip(0)
    products = torch.bmm(blocks, torch.stack(columns))
    levels = [x[:, 1 : 1 + y.shape[1]] for x, y in zip(products, weights, strict=True)]
    return [x.to(dtype) for x in (*levels, products[:, :, 0].sum(0))]


PROVIDERS: dict[str, Fold] = {
    "eager": reference.folded_projections,
    "batched": batched,
    "compile": torch.compile(reference.folded_projections, dynamic=False),
}
if shapes.ON_GPU:
    PROVIDERS["fused"] = folded_projections


@lru_cache(maxsize=1)
def inputs(setting: Setting) -> tuple[list[Tensor], list[Tensor]]:
    """The convolution, the projections and their biases; the gradients of the products."""
    generator = torch.Generator(shapes.DEVICE).manual_seed(0)
    e, widths = setting.channels, shapes.WIDTHS[setting.backbone]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=shapes.DEVICE)

    leaves = [normal(e, len(widths) * e) / e**0.5, *(normal(e, c) / c**0.5 for c in widths)]
    leaves += [normal(e) for _ in widths]
    return leaves, [*(normal(e, c) for c in widths), normal(e)]


def both_ways(
    fold: Fold, setting: Setting, exact: bool = False, dtype: torch.dtype = DTYPE
) -> tuple[Tensor, ...]:
    """The products and all gradients, or these in float64."""
    leaves, upstream = inputs(setting)
    upstream = [x.to(dtype) for x in upstream]
    if exact:
        leaves, upstream = ([x.double() for x in group] for group in (leaves, upstream))
        dtype = torch.float64
    leaves = [x.detach().requires_grad_() for x in leaves]
    n = len(leaves) // 2
    out = fold(leaves[0], leaves[1 : n + 1], leaves[n + 1 :], dtype)
    return (*(x.detach() for x in out), *torch.autograd.grad(out, leaves, upstream))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("setting", GRID, ids=str)
def bench_folded_projections(measure: Measure, setting: Setting, provider: str) -> None:
    step = partial(both_ways, PROVIDERS[provider], setting)

    def check() -> float:
        eager, truth = (
            both_ways(reference.folded_projections, setting, exact) for exact in (False, True)
        )
        return largest_error(step(), eager, truth, SLACK[DTYPE])

    leaves, upstream = inputs(setting)
    products = sum(x.numel() for x in upstream) * DTYPE.itemsize
    measure(
        step,
        provider=provider,
        case=str(setting),
        mode="fwd+bwd",
        dtype=DTYPE,
        bytes_moved=3 * sum(x.nbytes for x in leaves) + 2 * products,
        check=check,
    )
