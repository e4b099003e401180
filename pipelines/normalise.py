"""Codes to network input, the same operation behind both loaders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .spec import ModalitySpec


class Normaliser:
    """``(code * scale + offset - mean) / std`` per modality and channel, as one multiply-add."""

    def __init__(self, modalities: Sequence[ModalitySpec]) -> None:
        mean = torch.tensor([m.mean for m in modalities], dtype=torch.float64)
        std = torch.tensor([m.std for m in modalities], dtype=torch.float64)
        code = torch.tensor([(m.scale, m.offset) for m in modalities], dtype=torch.float64)
        shape = (len(modalities), 3, 1, 1)
        self._scale = (code[:, :1] / std).float().reshape(shape)
        self._shift = ((code[:, 1:] - mean) / std).float().reshape(shape)

    def __call__(self, images: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Normalise a batch; on a machine with a GPU, CPU results are in pinned memory.

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
        pin = device.type == "cpu" and torch.cuda.is_available()
        out = torch.empty(
            (len(images), *images[0].shape), dtype=torch.float32, device=device, pin_memory=pin
        )
        for image, scale, shift, target in zip(images, self._scale, self._shift, out, strict=True):
            torch.mul(image, scale, out=target)
            target.add_(shift)
        if present is not None:
            out.masked_fill_(~present.to(device)[:, :, None, None, None], 0)
        return out
