"""Mean fusion of all levels, and the sum of the gradients of the features from all their users.

Forward the means of four levels are made. Backward the features have three users, the means and two
losses, whose gradients are there: they are added. Providers: ``eager`` is the definition, whose
gradients autograd adds, ``compile`` the definition under ``torch.compile``, ``fused`` are the
kernels. The bytes are those of the features, once forward and three times backward, and of the
means, once in each pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import largest_error
from bench.harness.shapes import Setting
from fastseg.kernels import mean_fusion, reference

TESTS = ["test_mean_fusion.py"]
# relative to the largest element
SLACK = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
Fusion = Callable[..., tuple[list[Tensor], list[list[Tensor]]]]


@lru_cache(maxsize=1)
def inputs(setting: Setting) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The features, then gradients of the means and of both branches."""
    features, first, second = (
        shapes.make_features(setting.shape, setting.dtype, seed, channels_last=True)
        for seed in range(3)
    )
    return features, [[x[0] for x in features], first, second]


def both_ways(
    function: Fusion, setting: Setting, dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """The means and the gradients of the features."""
    features, gradients = inputs(setting)
    kind = dtype or setting.dtype
    leaves = [x.detach().to(kind).requires_grad_() for x in features]
    means, (first, second) = function(leaves, None, 2)
    upstream = [x.to(kind) for group in gradients for x in group]
    grads = torch.autograd.grad([*means, *first, *second], leaves, upstream)
    return *(x.detach() for x in means), *grads


PROVIDERS: dict[str, Fusion] = {
    "eager": reference.mean_fusion,
    "compile": torch.compile(reference.mean_fusion, dynamic=False),
}
if shapes.ON_GPU:
    PROVIDERS["fused"] = mean_fusion


@pytest.mark.parametrize(
    ("setting", "provider"),
    shapes.rows(PROVIDERS, ("eager", "fused"), shapes.settings()),
    ids=str,
)
def bench_mean_fusion(measure: Measure, setting: Setting, provider: str) -> None:
    def step(name: str = provider, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        return both_ways(PROVIDERS[name], setting, dtype)

    def check() -> float:
        truth = step("eager", torch.float64)
        return largest_error(step(), step("eager"), truth, SLACK[setting.dtype])

    features, (means, *_) = inputs(setting)
    measure(
        step,
        provider=provider,
        case=str(setting),
        mode="fwd+bwd",
        dtype=setting.dtype,
        bytes_moved=4 * sum(x.nbytes for x in features) + 2 * sum(x.nbytes for x in means),
        check=check,
    )
