"""Codes to network input, the same operation behind both loaders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import Layout
from ..datasets.spec import ModalitySpec


class Normaliser:
    """``(code * scale + offset - mean) / std`` per modality and channel, as one multiply-add.

    Args:
        modalities: M of them.
        layout: memory order of the result; auto is channels-last on a GPU and planes on the CPU.
    """

    def __init__(self, modalities: Sequence[ModalitySpec], layout: Layout = "auto") -> None:
        mean = torch.tensor([m.mean for m in modalities], dtype=torch.float64)
        std = torch.tensor([m.std for m in modalities], dtype=torch.float64)
        code = torch.tensor([(m.scale, m.offset) for m in modalities], dtype=torch.float64)
        shape = (len(modalities), 3, 1, 1)
        self._scale = (code[:, :1] / std).float().reshape(shape)
        self._shift = ((code[:, 1:] - mean) / std).float().reshape(shape)
        self._layout = layout

    @property
    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Factor and summand of every code, ``[M, 3, 1, 1]`` float32."""
        return self._scale, self._shift

    def __call__(self, images: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Normalise a batch.

        Args:
            images: M codes ``[B, 3, H, W]``, each of its own type (uint8, uint16 or float32).
            present: ``[M, B]`` bool, False where an image is to be 0 after normalisation; None for
                all present.

        Returns:
            ``[M, B, 3, H, W]`` float32 on the same device.
        """
        device = images[0].device
        if self._scale.device != device:
            self._scale = self._scale.to(device)
            self._shift = self._shift.to(device)
        out = _empty(len(images), images[0], self._layout)
        for image, scale, shift, target in zip(images, self._scale, self._shift, out, strict=True):
            torch.mul(_portable(image), scale, out=target)
            target.add_(shift)
        return _without_absent(out, present)


def stacked(images: Sequence[Tensor], present: Tensor | None = None, *, layout: Layout) -> Tensor:
    """Images that are normalised already, in the form that ``Normaliser`` returns."""
    out = _empty(len(images), images[0], layout)
    for image, target in zip(images, out, strict=True):
        target.copy_(image)
    return _without_absent(out, present)


def _empty(count: int, image: Tensor, layout: Layout) -> Tensor:
    batch, channels, height, width = image.shape
    if layout == "auto":
        layout = "planes" if image.device.type == "cpu" else "channels_last"
    planes = layout == "planes"
    shape = image.shape if planes else (batch, height, width, channels)
    if image.device.type == "cpu":
        # NumPy asks for large pages; torch's 4 KiB ones took as long to fault in as all the rest
        out = torch.from_numpy(np.empty((count, *shape), np.float32))
    else:
        out = image.new_empty((count, *shape), dtype=torch.float32)
    return out if planes else out.permute(0, 1, 4, 2, 3)


def _without_absent(out: Tensor, present: Tensor | None) -> Tensor:
    if present is not None:
        out.masked_fill_(~present.to(out.device)[:, :, None, None, None], 0)
    return out


def _portable(image: Tensor) -> Tensor:
    """Codes in a type that every device computes with; few operators know uint16 beyond the CPU."""
    if image.dtype != torch.uint16 or image.device.type == "cpu":
        return image
    return image.view(torch.int16).int() & 0xFFFF
