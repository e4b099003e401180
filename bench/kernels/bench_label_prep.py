"""Label maps of all levels and their class counts: what pooling needs of the labels.

The kernels have no such step and no row here: pooling takes the label of a pixel from the map at
full resolution and counts the classes in the launch that sums the features. The rows say what that
saves. ``official`` is :mod:`bench.rivals.published_losses`'s way, once for every modality of both
networks; ``torch_slice`` takes strided slices and counts without a wait; ``eager`` is the
definition.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import largest_error
from bench.rivals import published_losses
from fastseg.kernels import reference
from fastseg.kernels.reference.pooling import class_assignment

TESTS: list[str] = []
SHAPE = shapes.GRID[0]
DTYPES = (torch.uint8, torch.int64)


def _sizes() -> list[tuple[int, int]]:
    return [(h, w) for *_, h, w in SHAPE.levels]


def official(labels: Tensor) -> list[Tensor]:
    """Resize and count for each sample, level, modality and network; the last one is returned."""
    maps = []
    for size in _sizes():
        for _ in range(2 * SHAPE.modalities):
            resized = [published_losses.resized_labels(y, size) for y in labels]
            counts = [[(y == k).sum() for k in range(SHAPE.num_classes)] for y in resized]
        maps += [torch.stack(resized), torch.stack([torch.stack(row) for row in counts])]
    return maps


def torch_slice(labels: Tensor) -> list[Tensor]:
    """Strided slices; the classes are counted by addition."""
    maps, k = [], SHAPE.num_classes
    for stride in shapes.STRIDES:
        resized = labels[:, ::stride, ::stride].contiguous()
        cell = resized.flatten(1).long().clamp(max=k)
        counts = cell.new_zeros((len(cell), k + 1)).scatter_add(1, cell, torch.ones_like(cell))
        maps += [resized, counts[:, :k]]
    return maps


def eager(labels: Tensor) -> list[Tensor]:
    """The definition."""
    maps = []
    for size in _sizes():
        resized = reference.level_labels(labels, size)
        maps += [resized, class_assignment(resized, SHAPE.num_classes)[1]]
    return maps


PROVIDERS = {"official": official, "eager": eager, "torch_slice": torch_slice}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_label_prep(measure: Measure, dtype: torch.dtype, provider: str) -> None:
    labels = shapes.make_labels(SHAPE, dtype=dtype)
    step = partial(PROVIDERS[provider], labels)

    def check() -> float:
        wanted = [x.double() for x in eager(labels)]
        return largest_error(step(), wanted, wanted, slack=0.0)

    read = len(labels) * sum(h * w for h, w in _sizes()) * labels.itemsize
    measure(
        step,
        provider=provider,
        case=str(SHAPE),
        mode="fwd",
        dtype=dtype,
        bytes_moved=2 * read,
        check=check,
    )
