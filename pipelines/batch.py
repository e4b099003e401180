"""The contract between every loader and the trainer."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of registered images of M modalities with its label map.

    Attributes:
        images: ``[M, B, 3, H, W]`` float32, normalised; the modality axis follows ``modalities``.
        labels: ``[B, H, W]`` int64, classes ``0..K-1``; 255 is ignored.
        modalities: M names, as in the data set's spec.
        sample_ids: B paths relative to the root that name the sample without tag and suffix,
            such as ``cloud/val/MAP_4_point12/157550``.
    """

    images: Tensor
    labels: Tensor
    modalities: tuple[str, ...]
    sample_ids: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; a copy from pinned memory does not block the host."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


class Loader(Protocol):
    """What both loaders offer.

    ``name`` says which one it is (``"torch"`` or ``"dali"``); ``reason`` why it was chosen;
    ``fingerprint`` is a hash of the sample ids.
    """

    name: str
    reason: str
    fingerprint: str
    num_samples: int
    steps_per_epoch: int

    def batches(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Batches of the global steps ``start`` (inclusive) to ``stop`` (exclusive).

        For training the stream is endless (``stop=None``) and epoch = step // steps_per_epoch.
        For evaluation one pass has ``steps_per_epoch`` batches, the last one possibly smaller.
        """
        ...

    def close(self) -> None:
        """Release worker processes and threads. Safe to call twice."""
        ...
