"""The loader on NVIDIA DALI: threads without Python, and the GPU after decoding where there is one.

DALI is imported when a loader is made, so that everything else works without it.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...batch import Batch
from ...errors import DataError
from ...transform.normalise import Normaliser
from ..finish import finisher, noisy
from ..plan import Plan
from ..samples import SampleReader
from .graph import build_pipeline

_OLDEST = (2, 4)
"""The version whose decoders and resizing were compared with the torch loader's."""
_AHEAD = 3
"""Steps that may be in the pipeline when an error of one of them surfaces."""


def dali_import_error() -> str | None:
    """Reason why DALI cannot be used, or None if it can."""
    try:
        import_module("nvidia.dali.plugin.pytorch")
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    version = str(import_module("nvidia.dali").__version__)
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        return f"version {version} is older than {'.'.join(map(str, _OLDEST))}"
    return None


class DaliLoader:
    """Batches by a DALI pipeline with the contract of ``Loader``.

    Batches are on the current GPU, or on the CPU where there is none. Each stream has a pipeline
    of its own: its place is the step it starts at, and DALI keeps no state worth saving.
    """

    name = "dali"

    def __init__(self, plan: Plan, reason: str) -> None:
        self.reason = reason
        self.warning = plan.warning
        self.files = plan.files
        self.fingerprint = plan.files.fingerprint
        self.num_samples = len(plan.files)
        self.steps_per_epoch = plan.order.steps_per_epoch
        self.damage = plan.damage
        self._plan = plan
        self._finish = finisher(plan)
        self._normalise = Normaliser(plan.files.modalities, "planes")
        self._device_id = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._pipeline: Any = None
        self._stream: object | None = None

    def batches(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Batches of the global steps ``start`` to ``stop``; see ``Loader``.

        One stream at a time: the first batch of a new one ends the old one.

        Raises:
            DataError: a file of this batch, or of one that is being prepared, cannot be used.
        """
        self.close()
        stream = self._stream = object()
        steps = self._plan.steps(start, stop)
        self._start(steps)
        try:
            for step in steps:
                yield self._next(step, steps.stop)
                if stream is not self._stream:
                    return
        finally:
            if stream is self._stream:
                self.close()

    def check(self) -> None:
        """See ``Loader`` and ``Plan.check``."""
        self._plan.check()

    def close(self) -> None:
        """Let go of the pipeline and its threads, and with them any stream."""
        # only this object holds the pipeline, so its threads end here and not at some collection
        self._stream = self._pipeline = None

    def _start(self, steps: range) -> None:
        self._pipeline = build_pipeline(self._plan, steps, self._device_id)

    def _next(self, step: int, stop: int) -> Batch:
        """The batch of the pipeline's next iteration, which is step ``step``.

        After an error a pipeline is of no use. Where unreadable samples are replaced, a new one
        starts at this step, knowing those that its predecessor failed on.
        """
        while True:
            found = self._run()
            if isinstance(found, tuple):
                return self._batch(step, found)
            if isinstance(found, DataError):
                raise found
            self._note_culprits(step, found)
            self._start(range(step, stop))

    def _run(self) -> tuple[Any, ...] | DataError | str:
        """Images and labels of the next iteration, or our error, or what DALI says.

        Errors are made anew: a traceback through DALI's frames would keep the pipeline alive, and
        a process forked later crashes when it collects a pipeline whose threads it does not have.
        """
        try:
            *outputs, check = self._pipeline.run(*self._streams())
        except DataError as error:
            return DataError(str(error), error.kind)
        except RuntimeError as error:
            # DALI puts its traceback first and the reason last
            return str(error).rpartition("encountered:")[2].strip()
        return "a label value must not occur" if any(check.as_array()) else tuple(outputs)

    def _streams(self) -> tuple[Any, ...]:
        """The stream that outputs must be ready on; none for the CPU."""
        return () if self._device_id is None else (torch.cuda.current_stream(),)

    def _batch(self, step: int, outputs: tuple[Any, ...]) -> Batch:
        *images, labels = (self._copied(output) for output in outputs)
        codes = tuple(
            image.view(torch.uint16) if modality.dtype == np.uint16 else image
            for modality, image in zip(self._plan.files.modalities, images, strict=True)
        )
        plan = self._plan.settled(step)
        if plan.corruption.noise != "none":
            codes = noisy(codes, plan, step, self._normalise)
        return Batch(
            codes=codes,
            classes=labels.squeeze(-1),
            modalities=plan.modalities,
            sample_ids=plan.sample_ids(step),
            finish=partial(self._finish, present=plan.present(step)),
            replaced=self._plan.replaced(step),
        )

    def _copied(self, output: Any) -> Tensor:
        """DALI takes its buffers back at the next run, so outputs are copied."""
        plugin = import_module("nvidia.dali.plugin.pytorch")
        source = output.as_tensor()
        target = torch.empty(
            source.shape(),
            dtype=plugin.to_torch_type[source.dtype],
            device="cpu" if self._device_id is None else f"cuda:{self._device_id}",
        )
        plugin.feed_ndarray(source, target, *self._streams())
        return target

    def _note_culprits(self, step: int, reason: str) -> None:
        """Decode the files of the failing steps one by one: DALI's own message may name none.

        Raises:
            DataError: a sample cannot be read and is not to be replaced, or all can be read.
        """
        plan, known = self._plan, len(self._plan.damage.reasons)
        reader = SampleReader(plan.files, plan.store)
        for candidate in plan.steps(step, step + _AHEAD):
            epoch, indices = plan.order.at(candidate)
            for index in indices:
                plan.damage.first_readable(epoch, index, reader.read)
        if len(plan.damage.reasons) > known:
            return
        raise DataError(
            f"DALI failed on files that decode without it ({', '.join(self._plan.sample_ids(step))}"
            f"); use --data.loader torch. DALI says: {reason}"
        )
