"""Distillation of the similarity maps of all levels: both networks forward, the student backward.

Providers: ``official`` are the published loops, written by us from the description of
github.com/RobustSeg/RMMSS at d5dd5d8, not copied: a full-size mask and two full-size products per
sample, level, modality, network and class; ignored pixels count as similarity one there. ``eager``
is the definition, ``compile`` the definition under ``torch.compile``, ``fused`` are the kernels.
Features are as the encoder leaves them, the channels of a pixel next to each other.

A class mean has to be known before a pixel is compared with it, and a class's sum of gradients
before a pixel's is written: the bytes are two reads of both networks and, for backward, two reads
of the student and a write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error, value_and_gradients
from fastseg.kernels.reference import similarity

TESTS = [
    "test_ifv_distillation.py",
    "test_prototype_similarity.py",
    "test_similarity_divergence.py",
]
# relative to the largest element; the naive divergence of the loops cancels
SLACK, SLACK_OFFICIAL = 1e-3, 1e-2
TEMPERATURE = 2.0


class Problem(NamedTuple):
    """Inputs: features of every level, the labels, K."""

    student: list[Tensor]
    teacher: list[Tensor]
    labels: Tensor
    num_classes: int


Loss = Callable[[list[Tensor], Problem], Tensor]


@lru_cache(maxsize=1)
def problem(setting: shapes.Setting) -> Problem:
    """The inputs of a setting; rows that follow each other share them."""
    shape = setting.shape
    student, teacher = (shapes.make_features(shape, setting.dtype, i, True) for i in (1, 2))
    labels = shapes.make_labels(shape, setting.labels)
    return Problem(student, teacher, labels, shape.num_classes)


def official_map(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Similarity map ``[1, h, w]`` of one sample's ``[1, C, h, w]`` and ``[H, W]``."""
    resized = functional.interpolate(labels[None, None].float(), size=features.shape[2:])
    resized = resized.expand_as(features)
    centre = features.clone()
    for k in range(num_classes):
        mask = (resized == k).to(features.dtype)
        mean = (mask * features).sum((2, 3)) / (mask.sum((2, 3)) + 1e-6)
        centre = (1 - mask) * centre + mask * mean[..., None, None]
    return functional.cosine_similarity(features, centre, dim=1)


def official(student: list[Tensor], inputs: Problem) -> Tensor:
    """The published loops; in float32, as the published training is."""
    total = torch.zeros((), device=shapes.DEVICE)
    for b, labels in enumerate(inputs.labels):
        for x, t in zip(student, inputs.teacher, strict=True):
            for m in range(x.shape[0]):
                own, wanted = (
                    official_map(
                        y[m, b : b + 1].to(torch.promote_types(y.dtype, torch.float32)),
                        labels, inputs.num_classes,
                    ) / TEMPERATURE
                    for y in (x, t)
                )  # fmt: skip
                divergence = functional.kl_div(
                    own.log_softmax(-1), wanted.softmax(-1), reduction="batchmean"
                )
                total = total + divergence * TEMPERATURE**2
    return total / len(inputs.labels)


def definition(ignored: str) -> Loss:
    """The definition, with ignored pixels left out or as the loops have them."""
    return lambda student, inputs: similarity.ifv_distillation(
        student, inputs.teacher, inputs.labels, inputs.num_classes, ignored=ignored
    )


def providers() -> dict[str, Loss]:
    """Implementations that can run here, by the provider's name."""
    found = {"official": official, "eager": definition("mask")}
    if shapes.ON_GPU:
        from fastseg.kernels.similarity.ifv_distillation import ifv_distillation

        found["fused"] = lambda student, inputs: ifv_distillation(
            student, inputs.teacher, inputs.labels, inputs.num_classes
        )
    found["compile"] = torch.compile(definition("mask"), dynamic=False)
    return found


PROVIDERS = providers()
ROWS = [
    (setting, "fwd+bwd", provider)
    for setting, provider in shapes.rows(PROVIDERS, ("eager", "fused"), shapes.settings())
]
ROWS += [(shapes.Setting(), "fwd", provider) for provider in PROVIDERS if provider != "compile"]


def forward(loss: Loss, inputs: Problem) -> tuple[Tensor, ...]:
    """The value."""
    with torch.no_grad():
        return (loss(inputs.student, inputs),)


def both_ways(loss: Loss, inputs: Problem) -> tuple[Tensor, ...]:
    """Value and the gradients of the student's features."""
    return value_and_gradients(lambda student: loss(student, inputs), inputs.student)


@lru_cache(maxsize=2)
def wanted(setting: shapes.Setting, ignored: str) -> tuple[tuple[Tensor, ...], ...]:
    """The definition's results, in the setting's dtype and in float64."""
    inputs = problem(setting)
    exact = inputs._replace(student=in_double(inputs.student), teacher=in_double(inputs.teacher))
    loss = definition(ignored)
    return both_ways(loss, inputs), both_ways(loss, exact)


@pytest.mark.parametrize(("setting", "mode", "provider"), ROWS, ids=str)
def bench_ifv_map(measure: Measure, setting: shapes.Setting, mode: str, provider: str) -> None:
    inputs = problem(setting)
    step = partial(both_ways if mode == "fwd+bwd" else forward, PROVIDERS[provider], inputs)

    def check() -> float:
        results = step()
        loops = provider == "official"
        # forward alone returns what comes first
        plain, exact = (x[: len(results)] for x in wanted(setting, "one" if loops else "mask"))
        return largest_error(results, plain, exact, SLACK_OFFICIAL if loops else SLACK)

    side = sum(x.nbytes for x in inputs.student)
    measure(
        step,
        provider=provider,
        case=f"all levels {setting}",
        mode=mode,
        dtype=setting.dtype,
        bytes_moved=(7 if mode == "fwd+bwd" else 4) * side,
        check=check,
    )
