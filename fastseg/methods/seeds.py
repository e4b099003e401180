"""Seeds of everything that is drawn in a step, and the share of a step that a draw is for."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Seeds = Callable[[str], int]
"""Gives the seed of a purpose within one step, the same on every process."""

# the position in this tuple is part of a seed: append only
_PURPOSES = ("weights", "modalities", "dropout", "pairing", "noise")


@dataclass(frozen=True)
class Share:
    """The samples of one forward pass among those of the whole step.

    A step has ``accumulate`` micro-batches of ``world`` processes. Its samples are numbered as the
    loaders deal them: micro-batch after micro-batch, and within one round robin over the ranks.
    """

    rank: int = 0
    world: int = 1
    micro: int = 0
    accumulate: int = 1

    @property
    def part(self) -> int:
        """Number of this share among all of the step; 0 for the whole."""
        return self.micro * self.world + self.rank

    def size(self, batch: int) -> int:
        """Samples of the step, with ``batch`` in this share."""
        return batch * self.world * self.accumulate

    def rows(self, batch: int) -> slice:
        """Positions of these samples among those of the step."""
        first = self.micro * self.world * batch
        return slice(first + self.rank, first + self.world * batch, self.world)


def derive_seed(seed: int, stage: int, step: int, purpose: str, part: int = 0) -> int:
    """A 63-bit seed for one purpose of one step, so that no random state is saved or replayed.

    Args:
        seed: seed of the run.
        stage: position of the stage in the run.
        step: number of the step in the stage, from 0.
        purpose: name of the draw; any name, a method may have its own.
        part: part of the global batch that the draw is for, see `Share`.
    """
    known = purpose in _PURPOSES
    number = _PURPOSES.index(purpose) if known else len(_PURPOSES) + zlib.crc32(purpose.encode())
    parts = (seed, stage, step, number, *((part,) if part else ()))
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw_modalities(policy: str, num_modalities: int, seed: int) -> list[int]:
    """Positions of the modalities that the network sees in this step, ascending.

    ``full`` gives all. Otherwise k is uniform over 1..M and the subset uniform among those of
    size k ("anymodal dropout"), one draw for the whole global batch. It depends on the seed of the
    step alone, so all ranks agree and a resumed run draws the same.

    Args:
        policy: ``full``, ``drop`` or ``zero``, see `Stage`.
        num_modalities: M.
        seed: that of the step for the purpose ``modalities``.

    Source: arXiv:2411.17141 and the released code of arXiv:2505.12861v1.
    """
    if policy == "full":
        return list(range(num_modalities))
    random = np.random.default_rng(seed)
    kept = int(random.integers(1, num_modalities + 1))
    return sorted(random.permutation(num_modalities)[:kept].tolist())


def draw_modalities_of_samples(num_modalities: int, samples: int, seed: int) -> Tensor:
    """Modalities that are left of each sample: k uniform over 1..M, then k of them uniformly.

    The distribution is that of `draw_modalities`, drawn for each sample on its own.

    Args:
        num_modalities: M.
        samples: number of samples of the whole step.
        seed: that of the step for this purpose.

    Returns:
        ``[samples, M]`` int64, 1 for a modality that is left.
    """
    random = np.random.default_rng(seed)
    counts = random.integers(1, num_modalities + 1, size=(samples, 1))
    places = random.random((samples, num_modalities)).argsort(axis=1).argsort(axis=1)
    return torch.from_numpy((places < counts).astype(np.int64))
