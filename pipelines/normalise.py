"""8-bit codes to network input, the same operation behind both loaders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .spec import ModalitySpec


class Normaliser:
    """``(code / 255 - mean) / std`` per modality and channel, as one multiply-add.

    Input ``[M, B, 3, H, W]`` uint8, output float32 of the same shape on the same device.
    """

    def __init__(self, modalities: Sequence[ModalitySpec]) -> None:
        mean = torch.tensor([m.mean for m in modalities], dtype=torch.float64)
        std = torch.tensor([m.std for m in modalities], dtype=torch.float64)
        shape = (len(modalities), 1, 3, 1, 1)
        self._scale = (1 / (255 * std)).float().reshape(shape)
        self._shift = (-mean / std).float().reshape(shape)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch; on a machine with a GPU, CPU results are in pinned memory."""
        if self._scale.device != images.device:
            self._scale = self._scale.to(images.device)
            self._shift = self._shift.to(images.device)
        pin = images.device.type == "cpu" and torch.cuda.is_available()
        out = torch.empty(images.shape, dtype=torch.float32, device=images.device, pin_memory=pin)
        torch.mul(images, self._scale, out=out)
        return out.add_(self._shift)
