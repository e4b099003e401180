"""Order of the samples: arithmetic on (seed, epoch, step), no state to save.

Resuming is asking for another step, and any number of processes sees the same global batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..tools.keyed_random import PERMUTATION, words


class Order(Protocol):
    """The plan of one process."""

    steps_per_epoch: int

    def at(self, step: int) -> tuple[int, tuple[int, ...]]:
        """Epoch and sample indices of this process at global step ``step``."""
        ...


class TrainOrder:
    """A new permutation each epoch, cut into equal global batches; the rest of it is left out.

    Args:
        num_samples: n.
        batch: samples per step and process.
        seed: at least 0.
        rank: this process, from 0.
        world: number of processes.
        accumulate: batches that make one optimizer step; an epoch has whole optimizer steps, so it
            depends on the product of batch, world and accumulate alone.

    Raises:
        DataError: one global batch needs more samples than there are.
        ValueError: rank, world or seed make no sense.
    """

    def __init__(
        self,
        num_samples: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        _check_rank(rank, world)
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}")
        whole = batch * world * accumulate
        if num_samples < whole:
            largest = num_samples // (world * accumulate)
            remedy = (
                f"set --data.batch-size to at most {largest}"
                if largest
                else f"use at most {num_samples} processes with --data.batch-size 1"
            )
            times = f" x {accumulate} micro-batches" if accumulate > 1 else ""
            raise DataError(
                f"{num_samples} training samples are fewer than one global batch of "
                f"{whole} ({batch} x {world} processes{times}); {remedy}, add samples, or use each "
                "several times with --data.repeat"
            )
        self.steps_per_epoch = num_samples // whole * accumulate
        self._num_samples, self._batch, self._seed = num_samples, batch, seed
        self._rank, self._world = rank, world

    def at(self, step: int) -> tuple[int, tuple[int, ...]]:
        """Epoch and sample indices at global step ``step``.

        Every ``world``-th sample of the global batch, from ``rank``.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        width = self._batch * self._world
        everyone = _permutation(self._num_samples, self._seed, epoch)
        own = everyone[position * width + self._rank : (position + 1) * width : self._world]
        return epoch, tuple(own.tolist())

    def following(self, epoch: int, index: int) -> int:
        """The sample that comes after sample ``index`` in an epoch; after the last, the first."""
        everyone = _permutation(self._num_samples, self._seed, epoch)
        (position,) = np.flatnonzero(everyone == index)
        return int(everyone[(position + 1) % self._num_samples])


class EvalOrder:
    """Each sample exactly once, in the order of the list; a batch has samples of one size.

    A batch ends when it is full or the next sample has another size. Process ``rank`` takes every
    ``world``-th sample, whatever the sizes; processes may differ in their number of batches.

    Args:
        num_samples: n.
        batch: samples of a batch at most.
        rank: this process, from 0.
        world: number of processes.
        sizes: height and width of every sample as it is fed; none if all are equal.
    """

    def __init__(
        self,
        num_samples: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        _check_rank(rank, world)
        own = range(rank, num_samples, world)
        self._batches: list[tuple[int, ...]] = []
        for _, alike in groupby(own, key=lambda index: sizes[index] if sizes else None):
            run = tuple(alike)
            self._batches += [run[i : i + batch] for i in range(0, len(run), batch)]
        self.steps_per_epoch = len(self._batches)

    def at(self, step: int) -> tuple[int, tuple[int, ...]]:
        """Epoch 0 and the sample indices of batch ``step``; none behind the last."""
        return 0, self._batches[step] if step < len(self._batches) else ()


@dataclass
class FixedOrder:
    """One step of an order, with other samples in it."""

    epoch: int
    indices: tuple[int, ...]
    steps_per_epoch: int

    def at(self, step: int) -> tuple[int, tuple[int, ...]]:
        """The epoch and the samples, whatever the step."""
        return self.epoch, self.indices


@lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.argsort(words(num_samples, seed, PERMUTATION, epoch), kind="stable")


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank must be 0 to world - 1, got rank {rank} of {world}")
