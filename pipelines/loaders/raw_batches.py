"""Batches of codes as the torch loader makes them, in any process or thread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from ..faults.sensor_faults import Corruptor
from ..tools.workers import worker_fault
from ..transform.normalise import Normaliser
from ..transform.photometric import Augmenter
from .finish import noisy
from .plan import Plan
from .samples import Sample, SampleReader, render


@dataclass(frozen=True)
class RawBatch:
    """Codes of one batch: a quarter or half of the bytes to move between processes.

    Attributes:
        images: per modality ``[B, 3, H, W]`` of its type.
        labels: ``[B, H, W]`` uint8.
        unreadable: samples that were replaced, and why.
    """

    images: tuple[Tensor, ...]
    labels: Tensor
    unreadable: tuple[tuple[str, DataError], ...] = ()

    def pin_memory(self) -> RawBatch:
        """The same in memory that a GPU can read by itself; torch's loader calls this."""
        images = tuple(image.pin_memory() for image in self.images)
        return replace(self, images=images, labels=self.labels.pin_memory())

    def shared(self) -> RawBatch:
        """The same in memory that other processes can map.

        Raises:
            RuntimeError: there is too little of it (``/dev/shm``).
        """
        for tensor in (*self.images, self.labels):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        return self


class BatchSource(Dataset[RawBatch | DataError]):
    """Global step to raw batch, in any process or thread and in any order.

    Errors are returned: raised in a worker, they would reach the user as a nested traceback.

    Args:
        plan: what to make.
        pin: make batches in memory that a GPU can read by itself.
        share: make batches in memory that other processes can map.
    """

    def __init__(self, plan: Plan, *, pin: bool, share: bool = False) -> None:
        self._plan = plan
        self._pin, self._share = pin, share
        self._reader = SampleReader(plan.files, plan.store, cache=plan.config.cache)
        self._corrupt = Corruptor(plan.corruption, plan.files, plan.seed)
        self._normalise = Normaliser(plan.files.modalities, "planes")

    def __getitem__(self, step: int) -> RawBatch | DataError:
        try:
            batch = self._assemble(step)
            # left to torch, this would fail in a thread whose errors reach nobody
            return batch.shared() if self._share else batch
        except DataError as error:
            return error
        except RuntimeError as error:
            fault = worker_fault(error) if self._share else None
            if fault is None:
                raise
            return fault

    def _assemble(self, step: int) -> RawBatch:
        files, damage = self._plan.files, self._plan.damage
        epoch, planned = self._plan.order.at(step)
        read_one = partial(self._read, epoch)
        read = [damage.first_readable(epoch, index, read_one) for index in planned]
        plan = self._plan.settled(step)
        samples = [self._with_faults(epoch, index, sample) for index, sample in read]
        geometries = plan.geometries(step, [sample.size for sample in samples])
        looks = [plan.looks(epoch, index) for index, _ in read]
        height, width = geometries[0].rows.out, geometries[0].cols.out
        count = len(read)
        batch = RawBatch(
            tuple(self._empty(m.dtype, count, 3, height, width) for m in files.modalities),
            self._empty(np.dtype(np.uint8), count, height, width),
        )
        images, labels = [image.numpy() for image in batch.images], batch.labels.numpy()
        for b, sample in enumerate(samples):
            augment = Augmenter(looks[b], plan.config)
            render(files, sample, geometries[b], augment, [i[b] for i in images], labels[b])
        if plan.corruption.noise != "none":
            batch = replace(batch, images=noisy(batch.images, plan, step, self._normalise))
            batch = batch.pin_memory() if self._pin else batch
        return replace(batch, unreadable=tuple(damage.reasons.items()))

    def _read(self, epoch: int, index: int) -> Sample:
        """A sample, with blank images where the faults drawn for it put others."""
        if self._plan.damage.replaces:
            return self._reader.read(index)
        discards = self._corrupt.discards
        return self._reader.read(index, lambda modality: discards(modality, epoch, index))

    def _with_faults(self, epoch: int, index: int, sample: Sample) -> Sample:
        """A sample with the faults drawn for it."""
        read, damage = self._reader.image, self._plan.damage
        images = tuple(
            self._corrupt(image, modality, epoch, index, damage.other_reader(read, image))
            for modality, image in zip(self._plan.files.modalities, sample.images, strict=True)
        )
        return Sample(images, sample.label)

    def _empty(self, dtype: np.dtype[np.generic], *shape: int) -> Tensor:
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        return torch.empty(shape, dtype=kind, pin_memory=self._pin)
