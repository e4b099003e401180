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

from .batch import Batch
from .dali_graph import build_pipeline
from .errors import DataError
from .noise import finisher, noisy
from .normalise import Normaliser
from .plan import Plan
from .samples import SampleReader

_OLDEST = (2, 4)
"""The version whose decoders and resizing were compared with the torch loader's."""
_AHEAD = 3
"""Steps that may be in the pipeline when an error of one of them surfaces."""


def dali_import_error() -> str | None:
    """Why DALI cannot be used, or None if it can."""
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
        self.fingerprint = plan.files.fingerprint
        self.num_samples = len(plan.files)
        self.steps_per_epoch = plan.order.steps_per_epoch
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
        self._pipeline = build_pipeline(self._plan, steps, self._device_id)
        try:
            for step in steps:
                yield self._next(step)
                if stream is not self._stream:
                    return
        finally:
            if stream is self._stream:
                self.close()

    def close(self) -> None:
        """Let go of the pipeline and its threads, and with them any stream."""
        # only this object holds the pipeline, so its threads end here and not at some collection
        self._stream = self._pipeline = None

    def _next(self, step: int) -> Batch:
        """The batch of the pipeline's next iteration.

        Errors are made anew: a traceback through DALI's frames would keep the pipeline alive, and
        a process forked later crashes when it collects a pipeline whose threads it does not have.
        """
        try:
            outputs = self._pipeline.run(*self._streams())
        except DataError as error:
            problem = DataError(str(error))
        except RuntimeError as error:
            # DALI puts its traceback first and the reason last
            problem = self._culprit(step, str(error).rpartition("encountered:")[2].strip())
        else:
            if not any(outputs[-1].as_array()):
                return self._batch(step, outputs[:-1])
            problem = self._culprit(step, "a label value must not occur")
        raise problem

    def _streams(self) -> tuple[Any, ...]:
        """The stream that outputs must be ready on; none for the CPU."""
        return () if self._device_id is None else (torch.cuda.current_stream(),)

    def _batch(self, step: int, outputs: tuple[Any, ...]) -> Batch:
        *images, labels = (self._copied(output) for output in outputs)
        codes = tuple(
            image.view(torch.uint16) if modality.dtype == np.uint16 else image
            for modality, image in zip(self._plan.files.modalities, images, strict=True)
        )
        if self._plan.corruption.noise != "none":
            codes = noisy(codes, self._plan, step, self._normalise)
        return Batch(
            codes=codes,
            classes=labels.squeeze(-1),
            modalities=self._plan.modalities,
            sample_ids=self._plan.sample_ids(step),
            finish=partial(self._finish, present=self._plan.present(step)),
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

    def _culprit(self, step: int, reason: str) -> DataError:
        """Decode the files of the failing steps one by one: DALI's own message may name none."""
        reader = SampleReader(self._plan.files)
        for candidate in self._plan.steps(step, step + _AHEAD):
            for index in self._plan.order.at(candidate)[1]:
                try:
                    reader.read(index)
                except DataError as found:
                    return DataError(str(found))
        return DataError(
            f"DALI failed on files that decode without it ({', '.join(self._plan.sample_ids(step))}"
            f"); use --data.loader torch. DALI says: {reason}"
        )
