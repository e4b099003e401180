"""The all-MLP head behind its projections in training: logits, and the gradients of all its parts.

Providers: ``eager`` is the definition, with torch's interpolation, BatchNorm and products,
``compile`` the definition under ``torch.compile``, ``fused`` are the kernels. The bytes are seven
times those of the map before the BatchNorm: written and read for the logits, read for the sums of
its gradient, read and written for the gradient, read for those of the levels, and once for all that
is smaller. ``sum`` is the sum of the upsampled levels alone, two passes over a map of that size and
two over the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import largest_error
from fastseg.kernels import mlp_head, reference, sum_of_upsampled

TESTS = ["test_mlp_head.py", "test_upsampled_sum.py"]
# relative to the largest element
SLACK = {torch.bfloat16: 1e-2, torch.float32: 1e-4}


class Setting(NamedTuple):
    """Sizes of a head."""

    side: int
    batch: int
    channels: int
    first: int
    num_classes: int = shapes.NUM_CLASSES

    def __str__(self) -> str:
        return f"{self.side}px-B{self.batch}-E{self.channels}-C{self.first}-K{self.num_classes}"


GRID = (
    [Setting(1024, 2, 768, 32), Setting(1024, 2, 256, 32), Setting(1024, 2, 768, 64),
     Setting(1024, 8, 256, 32), Setting(512, 2, 768, 32)]
    if shapes.ON_GPU
    else [Setting(128, 1, 64, 32)]
)  # fmt: skip
DTYPE = shapes.DTYPES[0]


class Head(NamedTuple):
    """Functions of the levels' sum and of the whole head."""

    add: Callable[..., Tensor]
    whole: Callable[..., Tensor]


PROVIDERS = {
    "eager": Head(reference.sum_of_upsampled, reference.mlp_head),
    "compile": Head(
        torch.compile(reference.sum_of_upsampled, dynamic=False),
        torch.compile(reference.mlp_head, dynamic=False),
    ),
}
if shapes.ON_GPU:
    PROVIDERS["fused"] = Head(sum_of_upsampled, mlp_head)


@lru_cache(maxsize=1)
def inputs(setting: Setting) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The levels, the other parts, and the gradient of the logits."""
    generator = torch.Generator(shapes.DEVICE).manual_seed(0)
    b, e, c, k = setting.batch, setting.channels, setting.first, setting.num_classes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=shapes.DEVICE).to(DTYPE)

    first, *levels = (
        normal(b, side, side, channels).permute(0, 3, 1, 2)
        for side, channels in ((setting.side // s, c if s == 4 else e) for s in shapes.STRIDES)
    )
    parts = [first, normal(e, c) / c**0.5, normal(k, e) / e**0.5, normal(k)]
    return levels, parts, normal(b, first.shape[2], first.shape[3], k).permute(0, 3, 1, 2)


def both_ways(
    function: Callable[..., Tensor], setting: Setting, whole: bool, dtype: torch.dtype = DTYPE
) -> tuple[Tensor, ...]:
    """The result and all gradients."""
    levels, parts, upstream = inputs(setting)
    levels, parts = (
        [x.detach().to(dtype).requires_grad_() for x in group] for group in (levels, parts)
    )
    leaves: Sequence[Tensor]
    if whole:
        norm = nn.BatchNorm2d(setting.channels, device=shapes.DEVICE)
        norm = norm.double() if dtype == torch.float64 else norm
        out = function(levels, *parts, norm)
        leaves, upstream = [*levels, *parts, norm.weight, norm.bias], upstream.to(dtype)
    else:
        out = function(levels, parts[0].shape[2:])
        leaves, upstream = levels, parts[0].detach()[:, :1].expand(out.shape)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("what", ["head", "sum"])
@pytest.mark.parametrize("setting", GRID, ids=str)
def bench_mlp_head(measure: Measure, setting: Setting, what: str, provider: str) -> None:
    whole = what == "head"
    if provider == "compile" and setting != GRID[0]:
        pytest.skip("compiles anew for every size")

    def step(name: str = provider, dtype: torch.dtype = DTYPE) -> tuple[Tensor, ...]:
        return both_ways(PROVIDERS[name][int(whole)], setting, whole, dtype)

    def check() -> float:
        return largest_error(step(), step("eager"), step("eager", torch.float64), SLACK[DTYPE])

    levels, parts, _ = inputs(setting)
    size = parts[0].nbytes // setting.first * setting.channels
    measure(
        step,
        provider=provider,
        case=f"{what} {setting}",
        mode="fwd+bwd",
        dtype=DTYPE,
        bytes_moved=7 * size if whole else 2 * size + 2 * sum(x.nbytes for x in levels),
        check=check,
    )
