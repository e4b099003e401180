"""Masked prototype pooling of all levels: both networks forward, the student backward.

Providers: ``official`` are the published loops (:mod:`bench.rivals.published_losses`), whose
prototypes are divided by the class count twice; ``eager`` is the definition, a one-hot product in
float32; ``compile`` the definition under ``torch.compile``; ``onehot_bmm`` and ``index_add`` see
:mod:`bench.rivals.plain_pooling`; ``fused`` are the kernels. Features are as the encoder leaves
them, the channels of a pixel next to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error
from bench.rivals import published_losses
from bench.rivals.plain_pooling import definition_pools, index_add_pools, onehot_bmm_pools
from fastseg.kernels.reference.pooling import Divide

TESTS = ["test_prototype_pool.py"]
# relative to the largest element; bmm rounds the sums of bfloat16 features to bfloat16
SLACK, SLACK_BMM = 1e-4, 2e-2
Pool = Callable[[Sequence[Tensor], Tensor, int], list[Tensor]]


class Problem(NamedTuple):
    """Inputs: features of every level, labels, and a gradient of the student's prototypes."""

    student: list[Tensor]
    teacher: list[Tensor]
    labels: Tensor
    upstream: list[Tensor]


@lru_cache(maxsize=1)
def problem(setting: shapes.Setting) -> Problem:
    """The inputs of a setting; rows that follow each other share them."""
    shape = setting.shape
    student, teacher = (shapes.make_features(shape, setting.dtype, i, True) for i in (1, 2))
    generator = torch.Generator(shapes.DEVICE).manual_seed(3)
    upstream = [
        torch.randn((m, b, shape.num_classes, c), generator=generator, device=shapes.DEVICE)
        for m, b, c, *_ in shape.levels
    ]
    return Problem(student, teacher, shapes.make_labels(shape, setting.labels), upstream)


def official(features: Sequence[Tensor], labels: Tensor, num_classes: int) -> list[Tensor]:
    """The published loops."""
    levels = published_losses.prototype_pools(features, labels, num_classes)
    return [
        torch.stack(maps).view(*x.shape[:2], num_classes, x.shape[2])
        for maps, x in zip(levels, features, strict=True)
    ]


def providers() -> dict[str, Pool]:
    """Implementations that can run here, by the provider's name."""

    def without_counts(pools: Callable[..., list[tuple[Tensor, Tensor]]]) -> Pool:
        return lambda *args: [prototypes for prototypes, _ in pools(*args)]

    found: dict[str, Pool] = {
        "official": official,
        "eager": without_counts(definition_pools),
        "onehot_bmm": without_counts(onehot_bmm_pools),
        "index_add": without_counts(index_add_pools),
    }
    if shapes.ON_GPU:
        from fastseg.kernels.prototypes.pool import masked_prototype_pools

        found["fused"] = without_counts(masked_prototype_pools)
    found["compile"] = torch.compile(found["eager"], dynamic=False)
    return found


PROVIDERS = providers()
ROWS = [
    (setting, "fwd+bwd", provider)
    for setting, provider in shapes.rows(PROVIDERS, ("onehot_bmm", "fused"), shapes.settings())
]
ROWS += [(shapes.Setting(), "fwd", provider) for provider in PROVIDERS if provider != "compile"]


def forward(pool: Pool, inputs: Problem) -> tuple[Tensor, ...]:
    """Prototypes of both networks."""
    labels, k = inputs.labels, inputs.upstream[0].shape[2]
    with torch.no_grad():
        return (*pool(inputs.student, labels, k), *pool(inputs.teacher, labels, k))


def both_ways(pool: Pool, inputs: Problem) -> tuple[Tensor, ...]:
    """The same and the gradients of the student's features."""
    labels, k = inputs.labels, inputs.upstream[0].shape[2]
    leaves = [x.detach().requires_grad_() for x in inputs.student]
    prototypes = pool(leaves, labels, k)
    with torch.no_grad():
        others = pool(inputs.teacher, labels, k)
    upstream = [g.to(x.dtype) for g, x in zip(inputs.upstream, prototypes, strict=True)]
    grads = torch.autograd.grad(prototypes, leaves, upstream)
    return (*(x.detach() for x in prototypes), *others, *grads)


@lru_cache(maxsize=2)
def wanted(setting: shapes.Setting, twice: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The definition's results, in the setting's dtype and in float64."""
    inputs = problem(setting)
    exact = inputs._replace(
        student=in_double(inputs.student),
        teacher=in_double(inputs.teacher),
        upstream=in_double(inputs.upstream),
    )
    divide: Divide = "twice" if twice else "once"

    def pool(features: Sequence[Tensor], labels: Tensor, num_classes: int) -> list[Tensor]:
        pools = definition_pools(features, labels, num_classes, divide)
        return [prototypes for prototypes, _ in pools]

    return both_ways(pool, inputs), both_ways(pool, exact)


@pytest.mark.parametrize(("setting", "mode", "provider"), ROWS, ids=str)
def bench_proto_pool(measure: Measure, setting: shapes.Setting, mode: str, provider: str) -> None:
    inputs = problem(setting)
    step = partial(both_ways if mode == "fwd+bwd" else forward, PROVIDERS[provider], inputs)

    def check() -> float:
        results = step()
        # forward alone returns what comes first
        plain, exact = (x[: len(results)] for x in wanted(setting, provider == "official"))
        rounds = provider == "onehot_bmm" and setting.dtype != torch.float32
        return largest_error(results, plain, exact, SLACK_BMM if rounds else SLACK)

    side = sum(x.nbytes for x in inputs.student)
    measure(
        step,
        provider=provider,
        case=str(setting),
        mode=mode,
        dtype=setting.dtype,
        bytes_moved=(3 if mode == "fwd+bwd" else 2) * side,
        check=check,
    )
