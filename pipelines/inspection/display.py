"""Values of a modality as pictures for people."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.spec import ModalitySpec
from ..decode.images import Pixels


def to_values(modality: ModalitySpec, codes: NDArray[Any]) -> NDArray[np.float32]:
    """``code * scale + offset``: what the codes ``[3, H, W]`` of a file mean."""
    values: NDArray[np.float32] = codes.astype(np.float32)
    values *= np.float32(modality.scale)
    values += np.float32(modality.offset)
    return values


def picture(modality: ModalitySpec, values: NDArray[np.float32]) -> Pixels:
    """``[H, W, 3]`` of values ``[3, H, W]``: each channel from its ``shown`` range to 0..255."""
    low, high = np.array(modality.shown, np.float32).T[:, :, None, None]
    scaled = (values - low) * (255 / (high - low))
    pixels: Pixels = np.rint(scaled.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return pixels
