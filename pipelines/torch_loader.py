"""The loader that needs nothing but torch: worker processes, one thread, or in line."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .batch import Batch
from .errors import DataError
from .normalise import Normaliser
from .plan import Plan
from .prefetch import ThreadPrefetcher
from .samples import SampleReader, render

_PREFETCH = 2
"""Batches that are prepared ahead, per worker."""


@dataclass(frozen=True)
class RawBatch:
    """Codes of one batch: a quarter or half of the bytes to move between processes.

    Attributes:
        images: per modality ``[B, 3, H, W]`` of its type.
        labels: ``[B, H, W]`` uint8.
    """

    images: tuple[Tensor, ...]
    labels: Tensor


class BatchSource(Dataset[RawBatch | DataError]):
    """Global step to raw batch, in any process and in any order.

    Errors are returned: raised in a worker, they would reach the user as a nested traceback.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._reader = SampleReader(plan.files, cache=plan.config.cache)

    def __getitem__(self, step: int) -> RawBatch | DataError:
        try:
            return self._assemble(step)
        except DataError as error:
            return error

    def _assemble(self, step: int) -> RawBatch:
        _, indices = self._plan.order.at(step)
        samples = [self._reader.read(index) for index in indices]
        geometries = self._plan.geometries(step, [sample.size for sample in samples])
        height, width = geometries[0].rows.out, geometries[0].cols.out
        count = len(indices)
        images = [
            np.empty((count, 3, height, width), modality.dtype)
            for modality in self._plan.files.modalities
        ]
        labels = np.empty((count, height, width), np.uint8)
        for b, (sample, geometry) in enumerate(zip(samples, geometries, strict=True)):
            files = self._plan.files
            render(files, sample, geometry, [image[b] for image in images], labels[b])
        return RawBatch(tuple(map(torch.from_numpy, images)), torch.from_numpy(labels))


class TorchLoader:
    """Batches by ``torch.utils.data`` with the contract of ``Loader``.

    ``workers`` processes take turns in making whole batches. With ``cache``, one thread makes
    them, because each process would fill a cache of its own. ``workers=0`` loads in line.
    """

    name = "torch"

    def __init__(self, plan: Plan, reason: str) -> None:
        self.reason = reason
        self.fingerprint = plan.files.fingerprint
        self.num_samples = len(plan.files)
        self.steps_per_epoch = plan.order.steps_per_epoch
        self._plan = plan
        self._source = BatchSource(plan)
        self._normalise = Normaliser(plan.files.modalities)
        self._thread: ThreadPrefetcher[Batch] | None = None
        self._steps = _Steps()
        self._workers: DataLoader[RawBatch | DataError] | None = None
        self._results: Iterator[RawBatch | DataError] | None = None
        self._stream: object | None = None

    def batches(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Batches of the global steps ``start`` to ``stop``; see ``Loader``.

        One stream at a time: the first batch of a new one ends the old one.

        Raises:
            DataError: a file of the batch cannot be used.
        """
        self._end_thread()
        stream = self._stream = object()
        config = self._plan.config
        steps = self._plan.steps(start, stop)
        if config.workers and not config.cache:
            yield from self._finish(self._from_workers(steps), stream)
            return
        items = self._finish(((step, self._source[step]) for step in steps), stream)
        if not config.workers:
            yield from items
            return
        thread = self._thread = ThreadPrefetcher(items, _PREFETCH)
        try:
            yield from thread
        finally:
            thread.close()

    def close(self) -> None:
        """End the thread and the worker processes, and with them any stream."""
        self._stream = None
        self._end_thread()
        # the processes end with the last reference to these
        self._workers = self._results = None

    def _from_workers(self, steps: range) -> Iterator[tuple[int, RawBatch | DataError]]:
        """Results of the worker processes, which are started once and kept for later passes."""
        if self._workers is None:
            self._workers = DataLoader(
                self._source,
                batch_size=None,
                sampler=self._steps,
                num_workers=self._plan.config.workers,
                prefetch_factor=_PREFETCH,
                persistent_workers=True,
                worker_init_fn=_start_worker,
            )
        self._steps.steps = steps
        self._results = iter(self._workers)
        for step in steps:
            yield step, next(self._results)

    def _finish(
        self, raw: Iterable[tuple[int, RawBatch | DataError]], stream: object
    ) -> Iterator[Batch]:
        """Float batches, until another stream begins."""
        for step, item in raw:
            if isinstance(item, DataError):
                raise item
            yield Batch(
                images=self._normalise(item.images, self._plan.present(step)),
                labels=item.labels.long(),
                modalities=self._plan.modalities,
                sample_ids=self._plan.sample_ids(step),
            )
            if stream is not self._stream:
                return

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.close()
            self._thread = None


class _Steps:
    """Sampler whose steps are set before each pass, so that workers outlive it."""

    def __init__(self) -> None:
        self.steps = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)


def _start_worker(_worker: int) -> None:
    """Touch nothing that the fork copied."""
    # Ctrl-C is the parent's to handle; torch has seen to it that its SIGTERM ends us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # collecting objects that own threads of the parent would crash
    gc.freeze()
