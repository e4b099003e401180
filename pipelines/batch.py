"""Batches, which every loader gives and every step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of registered images of M modalities with its label map.

    What is kept and moved is what the files hold; ``images`` and ``labels`` are made of it when
    they are first asked for, on the device where it then is. So a quarter of the bytes crosses to
    a GPU, and normalising costs the host nothing.

    Attributes:
        codes: per modality ``[B, 3, H, W]`` uint8, uint16 or float32; or ``images`` themselves.
        classes: ``[B, H, W]`` train ids of any integer type; 255 is ignored.
        modalities: M names, as in the data set's spec.
        sample_ids: B paths relative to the root that name the sample without tag and suffix,
            such as ``cloud/val/MAP_4_point12/157550``.
        finish: makes ``images`` of ``codes``; None if they are that already.
        replaced: why samples that belong here could not be read, one message each; the next ones
            in order have their places.
    """

    codes: Tensor | tuple[Tensor, ...]
    classes: Tensor
    modalities: tuple[str, ...]
    sample_ids: tuple[str, ...]
    finish: Callable[[Sequence[Tensor]], Tensor] | None = None
    replaced: tuple[str, ...] = ()

    @cached_property
    def images(self) -> Tensor:
        """``[M, B, 3, H, W]`` float32, normalised; the modality axis follows ``modalities``."""
        if isinstance(self.codes, Tensor):
            return self.codes
        assert self.finish is not None
        return self.finish(self.codes)

    @cached_property
    def labels(self) -> Tensor:
        """``[B, H, W]`` int64, classes ``0..K-1``; 255 is ignored."""
        return self.classes.long()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; a copy from pinned memory does not block the host."""
        classes = self.classes.to(device, non_blocking=True)
        if classes is self.classes:
            return self
        codes: Tensor | tuple[Tensor, ...]
        if isinstance(self.codes, Tensor):
            codes = self.codes.to(device, non_blocking=True)
        else:
            codes = tuple(code.to(device, non_blocking=True) for code in self.codes)
        return replace(self, codes=codes, classes=classes)

    def first(self, count: int) -> Batch:
        """The first ``count`` samples, or all if there are no more."""
        codes: Tensor | tuple[Tensor, ...]
        if isinstance(self.codes, Tensor):
            codes = self.codes[:, :count]
        else:
            codes = tuple(code[:count] for code in self.codes)
        ids = self.sample_ids[:count]
        return replace(self, codes=codes, classes=self.classes[:count], sample_ids=ids)
