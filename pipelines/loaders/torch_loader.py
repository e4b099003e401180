"""The loader that needs nothing but torch: worker processes, threads, or in line."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterable, Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader

from ..batch import Batch
from ..errors import DataError
from ..tools.prefetch import ThreadPrefetcher
from ..tools.workers import cannot_start, obey_parent_only, stop_signals_blocked, worker_fault
from .finish import finisher
from .plan import Plan
from .raw_batches import BatchSource, RawBatch

_PREFETCH = 2
"""Batches that are prepared ahead, per worker."""
_POLL_S, _PATIENCE_S = 5, 600
"""Seconds between looks at the workers, and without a batch until they count as stuck."""


class TorchLoader:
    """Batches by ``torch.utils.data`` with the contract of ``Loader``.

    ``workers`` processes take turns in making whole batches. From a cache in memory or on disk,
    threads make them: each process would fill a cache of its own, and what is left to do without
    decoding holds no lock. ``workers=0`` loads in line.
    """

    name = "torch"

    def __init__(self, plan: Plan, reason: str) -> None:
        self.reason = reason
        self.warning = plan.warning
        self.files = plan.files
        self.fingerprint = plan.files.fingerprint
        self.num_samples = len(plan.files)
        self.steps_per_epoch = plan.order.steps_per_epoch
        self.damage = plan.damage
        self._plan = plan
        self._pin = torch.cuda.is_available()
        shared = plan.config.cache or plan.store is not None
        self._in_processes = bool(plan.config.workers) and not shared
        self._source = BatchSource(
            plan, pin=self._pin and not self._in_processes, share=self._in_processes
        )
        self._finish_images = finisher(plan)
        self._threads: ThreadPrefetcher[int, RawBatch | DataError] | None = None
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
        self._end_threads()
        stream = self._stream = object()
        steps = self._plan.steps(start, stop)
        if self._in_processes:
            yield from self._finish(self._from_workers(steps), stream)
        elif not self._plan.config.workers:
            yield from self._finish(((step, self._source[step]) for step in steps), stream)
        else:
            threads = ThreadPrefetcher(
                self._source.__getitem__, steps, self._plan.config.workers, _PREFETCH
            )
            self._threads = threads
            try:
                yield from self._finish(zip(steps, threads, strict=False), stream)
            finally:
                threads.close()

    def check(self) -> None:
        """See ``Loader`` and ``Plan.check``."""
        self._plan.check()

    def close(self) -> None:
        """End the threads and the worker processes, and with them any stream."""
        self._stream = None
        self._end_threads()
        # the processes end with the last reference to these
        self._workers = self._results = None

    def _from_workers(self, steps: range) -> Iterator[tuple[int, RawBatch | DataError]]:
        """Results of the worker processes, which are started once and kept for later passes.

        Raises:
            DataError: the workers cannot be started, one was killed, or they are stuck.
        """
        if self._workers is None:
            # garbage that owns threads, such as a pipeline of DALI, would crash in the children
            gc.collect()
            self._workers = DataLoader(
                self._source,
                batch_size=None,
                sampler=self._steps,
                num_workers=self._plan.config.workers,
                prefetch_factor=_PREFETCH,
                persistent_workers=True,
                worker_init_fn=_start_worker,
                pin_memory=self._pin,
                timeout=_POLL_S,
            )
        self._steps.steps = steps
        try:
            with stop_signals_blocked():
                self._results = iter(self._workers)
        except OSError as error:
            raise cannot_start(error) from None
        for step in steps:
            yield step, _next_of(self._results)

    def _finish(
        self, raw: Iterable[tuple[int, RawBatch | DataError]], stream: object
    ) -> Iterator[Batch]:
        """The batches, until another stream begins."""
        for step, item in raw:
            if isinstance(item, DataError):
                raise item
            for sample_id, reason in item.unreadable:
                self._plan.damage.note(sample_id, reason)
            plan = self._plan.settled(step)
            yield Batch(
                codes=item.images,
                classes=item.labels,
                modalities=plan.modalities,
                sample_ids=plan.sample_ids(step),
                finish=partial(self._finish_images, present=plan.present(step)),
                replaced=self._plan.replaced(step),
            )
            if stream is not self._stream:
                return

    def _end_threads(self) -> None:
        if self._threads is not None:
            self._threads.close()
            self._threads = None


class _Steps:
    """Sampler whose steps are set before each pass, so that workers outlive it."""

    def __init__(self) -> None:
        self.steps = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)


def _next_of(results: Iterator[RawBatch | DataError]) -> RawBatch | DataError:
    """The next result of worker processes, however they fare.

    Raises:
        DataError: one of them was killed, or they are stuck.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return next(results)
        except (RuntimeError, OSError, EOFError) as error:
            # torch gives up at every look; its iterator can be asked again
            if not str(error).startswith("DataLoader timed out"):
                fault = worker_fault(error)
                if fault is None:
                    raise
                raise fault from None
            if time.monotonic() > deadline:
                raise DataError(
                    f"the worker processes gave no batch for {_PATIENCE_S} s: the disk of the data "
                    "set does not answer, or they are stuck. Look at the disk, or load without "
                    "processes by --data.workers 0; the same command continues",
                    "memory",
                ) from None


def _start_worker(_worker: int) -> None:
    """Touch nothing that the fork copied, and leave signals to the parent."""
    obey_parent_only()
    # collecting objects that own threads of the parent would crash
    gc.freeze()
