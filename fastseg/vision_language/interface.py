"""The interface of a frozen vision-language model: pictures and sentences to one space.

Two encoders end in the same ``d`` dimensions, where the cosine of a picture and a sentence says how
well they match (CLIP, arXiv:2103.00020, section 2.3). Nothing here learns.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.errors import ConfigError
from fastseg.pipelines.tools.tensor_digest import tensors_digest
from fastseg.vision_language.preprocessing import Preprocessing

_TEXTS = 256
"""Texts that are encoded at once."""


class VisionLanguageModel(ABC):
    """A frozen model in eval mode and fp32 on one device.

    A subclass encodes prepared pictures and texts; this class makes unit vectors of them.

    Args:
        network: all weights.
        kind: library that reads the weights.
        path: place of the weights, whose name is that of the model.
        dim: d, the size of an embedding.
        preprocessing: from a picture to the input of the network.
        settings: everything else that decides an embedding, such as the tokenizer.
        device: device that computes.

    Attributes:
        name: for messages.
        identity: kind and hash of the weights, the preprocessing and the settings. Two models of
            one identity give the same embeddings, up to the rounding of their devices.
        dim: d.
        preprocessing: as given.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        kind: str,
        path: Path,
        dim: int,
        preprocessing: Preprocessing,
        settings: Sequence[str],
        device: torch.device,
    ) -> None:
        self.name, self.dim, self.preprocessing = path.resolve().name, dim, preprocessing
        digest = hashlib.sha256(tensors_digest(network.state_dict()).encode())
        digest.update(json.dumps([repr(preprocessing), *settings]).encode())
        self.identity = f"{kind}-{digest.hexdigest()[:32]}"
        self.network = network.to(device, torch.float32).eval().requires_grad_(False)
        self.device = device

    @abstractmethod
    def _encode_images(self, pixels: Tensor) -> Tensor:
        """``[N, d]`` of prepared pictures ``[N, 3, h, w]`` on the device."""

    @abstractmethod
    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        """``[N, d]`` of texts; what exceeds the longest text of the model is cut off."""

    def prepare(self, pictures: Tensor) -> Tensor:
        """Input of the network for pictures of one size; several threads may call it at once.

        Args:
            pictures: ``[N, 3, H, W]``, red, green and blue: uint8, or float from 0 to 1.

        Returns:
            ``[N, 3, h, w]`` float32 on the device of the pictures.

        Raises:
            ValueError: another shape or dtype.
        """
        return self.preprocessing(pictures)

    def embed_images(self, pictures: Tensor) -> Tensor:
        """``[N, d]`` float32 of unit norm for pictures as `prepare` takes them."""
        return self.embed_prepared(self.prepare(pictures.to(self.device)))

    def embed_prepared(self, pixels: Tensor) -> Tensor:
        """``[N, d]`` float32 of unit norm for the results of `prepare`.

        Raises:
            ConfigError: the network gives values that are not finite, or zero.
        """
        return self._unit(self._encode_images, pixels.to(self.device))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """``[N, d]`` float32 of unit norm; the embedding of a text does not depend on the others.

        Raises:
            ConfigError: the network gives values that are not finite, or zero.
        """
        parts = [texts[start : start + _TEXTS] for start in range(0, len(texts), _TEXTS)]
        found = [self._unit(self._encode_texts, part) for part in parts]
        return torch.cat(found) if found else torch.empty(0, self.dim, device=self.device)

    def _unit(self, encode: Callable[[Any], Tensor], inputs: Tensor | Sequence[str]) -> Tensor:
        """``x / |x|`` of the rows ``x`` that an encoder gives."""
        if not len(inputs):
            return torch.empty(0, self.dim, device=self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            rows = encode(inputs).float()
            norms = rows.norm(dim=1, keepdim=True)
        if not (norms.isfinite() & (norms > 0)).all():
            raise ConfigError(
                f"the vision-language model {self.name} gives embeddings that are zero or not "
                "finite: its weights are damaged, or not of this architecture; fetch them again"
            )
        unit: Tensor = rows / norms
        return unit
