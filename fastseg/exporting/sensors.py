"""Inputs of an exported network: the arrays of each sensor as a decoder leaves them.

    image [B, H, W, C]     rows of pixels of C channels, in the dtype of the stored codes

This is what Pillow, OpenCV, NumPy and cameras hold, so that nothing is transposed or converted
outside; the codes of all sensors would fit one float array, at two to four times the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastseg.pipelines.datasets.spec import ModalitySpec

Arrays = Mapping[str, NDArray[np.generic]]
"""Images ``[B, H, W, C]`` by the name of their sensor, in the order of the run."""

STRIDE = 32
"""Sides of the network's input are multiples of it."""


def stored_channels(modality: ModalitySpec) -> int:
    """C, the channels that a decoded image has; grey images are repeated to three by decoders."""
    return max(3 if modality.decoder == "image" else 1, max(modality.channels) + 1)


def as_stored(codes: NDArray[np.generic], modality: ModalitySpec) -> NDArray[np.generic]:
    """Codes ``[B, 3, H, W]`` of a loader in the channels that their file had, ``[B, H, W, C]``.

    Channels that the sensor does not use are 0.
    """
    batch, _, height, width = codes.shape
    stored = np.zeros((batch, height, width, stored_channels(modality)), codes.dtype)
    for position, channel in enumerate(modality.channels):
        stored[..., channel] = codes[:, position]
    return stored


def as_loaded(stored: NDArray[np.generic], modality: ModalitySpec) -> Tensor:
    """The inverse of `as_stored`, padded to multiples of 32 as a crop that leaves its image."""
    high, wide = (-side % STRIDE for side in stored.shape[1:3])
    planes = stored[..., list(modality.channels)].transpose(0, 3, 1, 2)
    padding = ((0, 0), (0, 0), (0, high), (0, wide))
    return torch.from_numpy(np.pad(planes, padding, constant_values=modality.empty))


def random_images(
    modalities: Sequence[ModalitySpec], batch: int, height: int, width: int, seed: int = 0
) -> dict[str, NDArray[np.generic]]:
    """Codes of every sensor from its whole range; arrays of floats by their mean and deviation."""
    generator = np.random.default_rng(seed)
    images: dict[str, NDArray[np.generic]] = {}
    for modality in modalities:
        shape = (batch, height, width, stored_channels(modality))
        if modality.dtype.kind == "u":
            beyond = 256**modality.dtype.itemsize
            images[modality.name] = generator.integers(0, beyond, shape).astype(modality.dtype)
        else:
            values = generator.normal(np.mean(modality.mean), np.mean(modality.std), shape)
            codes = (values - modality.offset) / modality.scale
            images[modality.name] = codes.astype(modality.dtype)
    return images
