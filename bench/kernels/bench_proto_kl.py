"""Hybrid prototype distillation of all levels, the student's modalities permuted; the divergence.

Providers: ``official`` are the published loops (:mod:`bench.rivals.published_losses`): the code
form, which pairs modality with modality and divides by the counts twice, at the same cost;
``eager`` is the definition of the paper form; ``compile`` the definition under ``torch.compile``;
``onehot_bmm`` and ``index_add`` pool as :mod:`bench.rivals.plain_pooling` and continue with the
definition; ``fused`` are the kernels.

The second division leaves the published loss below the rounding of float32 at the finest levels. So
its loops are checked in float64, and the error of ``official`` is that of its float32 value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error, value_and_gradients
from bench.rivals import published_losses
from bench.rivals.plain_pooling import Pools, index_add_pools, onehot_bmm_pools
from fastseg.kernels import reference
from fastseg.methods.pairing import draw_pairing

TESTS = ["test_hybrid_distillation.py", "test_prototype_divergence.py", "test_prototype_pool.py"]
# relative to the largest element; bmm rounds the sums of bfloat16 features to bfloat16
SLACK, SLACK_BMM, SLACK_DOUBLE = 1e-3, 5e-2, 1e-9


class Problem(NamedTuple):
    """Inputs: features, or prototypes, of every level, the labels, who teaches whom, K."""

    student: list[Tensor]
    teacher: list[Tensor]
    labels: Tensor
    pairing: Tensor
    num_classes: int

    def double(self) -> Problem:
        """The same numbers in float64."""
        student, teacher = in_double(self.student), in_double(self.teacher)
        return self._replace(student=student, teacher=teacher)


Loss = Callable[[list[Tensor], Problem], Tensor]


@lru_cache(maxsize=1)
def problem(setting: shapes.Setting) -> Problem:
    """The inputs of a setting; rows that follow each other share them."""
    shape = setting.shape
    student, teacher = (shapes.make_features(shape, setting.dtype, i, True) for i in (1, 2))
    everyone, generator = range(shape.modalities), torch.Generator().manual_seed(3)
    pairing = draw_pairing(shape.batch, shape.modalities, everyone, generator)
    labels = shapes.make_labels(shape, setting.labels)
    return Problem(student, teacher, labels, pairing.to(shapes.DEVICE), shape.num_classes)


def official(student: list[Tensor], inputs: Problem) -> Tensor:
    """The published loops."""
    return published_losses.prototype_distillation(
        student, inputs.teacher, inputs.labels, inputs.num_classes
    )


def definition(form: str) -> Loss:
    """The definition of a form."""
    return lambda student, inputs: reference.hybrid_prototype_distillation(
        student, inputs.teacher, inputs.labels, inputs.num_classes, inputs.pairing, form=form
    )


def pooled_by(pools: Pools) -> Loss:
    """The paper form with another pooling."""

    def loss(student: list[Tensor], inputs: Problem) -> Tensor:
        own = pools(student, inputs.labels, inputs.num_classes)
        with torch.no_grad():
            others = pools(inputs.teacher, inputs.labels, inputs.num_classes)
        terms = [
            reference.prototype_divergence(x.float(), t.float(), counts, inputs.pairing)
            for (x, counts), (t, _) in zip(own, others, strict=True)
        ]
        return torch.stack(terms).sum()

    return loss


def providers() -> dict[str, Loss]:
    """Implementations that can run here, by the provider's name."""
    found = {
        "official": official,
        "eager": definition("paper"),
        "onehot_bmm": pooled_by(onehot_bmm_pools),
        "index_add": pooled_by(index_add_pools),
    }
    if shapes.ON_GPU:
        from fastseg.kernels.prototypes.hybrid_distillation import hybrid_prototype_distillation

        found["fused"] = lambda student, inputs: hybrid_prototype_distillation(
            student, inputs.teacher, inputs.labels, inputs.num_classes, inputs.pairing
        )
    found["compile"] = torch.compile(definition("paper"), dynamic=False)
    return found


PROVIDERS = providers()
ROWS = shapes.rows(PROVIDERS, ("onehot_bmm", "fused"), shapes.settings())


def run(loss: Loss, inputs: Problem) -> tuple[Tensor, ...]:
    """Value and the gradients of the student's features."""
    return value_and_gradients(lambda student: loss(student, inputs), inputs.student)


@lru_cache(maxsize=1)
def wanted(setting: shapes.Setting) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The definition's results, in the setting's dtype and in float64."""
    inputs = problem(setting)
    return run(definition("paper"), inputs), run(definition("paper"), inputs.double())


@pytest.mark.parametrize(("setting", "provider"), ROWS, ids=str)
def bench_proto_kl(measure: Measure, setting: shapes.Setting, provider: str) -> None:
    inputs = problem(setting)
    step = partial(run, PROVIDERS[provider], inputs)

    def check() -> float:
        if provider == "official":
            return error_of_loops(inputs)
        rounds = provider == "onehot_bmm" and setting.dtype != torch.float32
        return largest_error(step(), *wanted(setting), SLACK_BMM if rounds else SLACK)

    measure(
        step,
        provider=provider,
        case=f"all levels {setting}",
        mode="fwd+bwd",
        dtype=setting.dtype,
        bytes_moved=3 * sum(x.nbytes for x in inputs.student),
        check=check,
    )


def error_of_loops(inputs: Problem) -> float:
    """Hold the loops to the definition's code form in float64; the error of their float32 value."""
    exact = run(definition("code"), inputs.double())
    largest_error(run(official, inputs.double()), exact, exact, SLACK_DOUBLE)
    value = official(inputs.student, inputs)
    return float((value.double() - exact[0]).abs() / exact[0])


def divergences() -> dict[str, Loss]:
    """Divergence of given prototypes, by the name of the provider."""

    def of_levels(divergence: Callable[..., Tensor], **options: Any) -> Loss:
        return lambda student, inputs: torch.stack([
            divergence(x, t, counts, inputs.pairing, **options)
            for x, t, counts in zip(student, inputs.teacher, inputs.labels, strict=True)
        ]).sum()  # fmt: skip

    found = {"official": official_divergence, "eager": of_levels(reference.prototype_divergence)}
    if shapes.ON_GPU:
        from fastseg.kernels.prototypes.divergence import prototype_divergence

        found["fused"] = of_levels(prototype_divergence)
    found["compile"] = torch.compile(found["eager"], dynamic=False)
    return found


def official_divergence(student: list[Tensor], inputs: Problem) -> Tensor:
    """The published loops without the pooling."""
    terms = [
        published_losses.softmax_divergence(x[m, b], t[m, b].detach())
        for x, t in zip(student, inputs.teacher, strict=True)
        for m in range(x.shape[0])
        for b in range(x.shape[1])
    ]
    return torch.stack(terms).sum() / inputs.pairing.shape[0]


def aligned_divergence(student: Sequence[Tensor], inputs: Problem) -> Tensor:
    """Value of :func:`official_divergence`, computed by the definition."""
    m, b = inputs.teacher[0].shape[:2]
    row_for_row = torch.arange(m, device=shapes.DEVICE).expand(b, m)
    return torch.stack([
        reference.prototype_divergence(x, t, counts, row_for_row, absent="zero_row")
        for x, t, counts in zip(student, inputs.teacher, inputs.labels, strict=True)
    ]).sum()  # fmt: skip


DIVERGENCES = divergences()


@pytest.mark.parametrize("provider", DIVERGENCES)
def bench_divergence(measure: Measure, provider: str) -> None:
    setting = shapes.Setting()
    maps = problem(setting)
    k, generator = maps.num_classes, torch.Generator(shapes.DEVICE).manual_seed(4)
    student, teacher = (
        [
            torch.randn((m, b, k, c), generator=generator, device=shapes.DEVICE) / 10
            for m, b, c, *_ in setting.shape.levels
        ]
        for _ in range(2)
    )
    counts = torch.stack([
        reference.masked_prototype_pool(x[:1], maps.labels, k)[1] for x in maps.student
    ])  # fmt: skip
    inputs = Problem(student, teacher, counts, maps.pairing, k)
    step = partial(run, DIVERGENCES[provider], inputs)

    def check() -> float:
        same = aligned_divergence if provider == "official" else DIVERGENCES["eager"]
        return largest_error(step(), run(same, inputs), run(same, inputs.double()), SLACK)

    measure(
        step,
        provider=provider,
        case=f"divergence alone {setting}",
        mode="fwd+bwd",
        dtype=torch.float32,
        bytes_moved=3 * sum(x.nbytes for x in student),
        check=check,
    )
