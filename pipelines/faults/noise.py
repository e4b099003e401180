"""The noise protocol (NM) of the robustness benchmark, on the network's input.

Salt and pepper on every modality, then normal noise on all but events, in normalised units
(arXiv:2503.18445, ``tools/val_mm_NM.py``). Two departures, so that a score can be repeated and does
not depend on the batch size: draws belong to the sample, and salt and pepper are the extremes of
the sample's image, not of the batch.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from ..tools.keyed_random import words
from .image_faults import normal_draws

_SALT, _PEPPER, _NORMAL = (zlib.crc32(name) for name in (b"salt", b"pepper", b"normal"))


def add_noise(
    image: NDArray[np.float32], density: float, sigma: float, key: tuple[int, ...]
) -> None:
    """Change a normalised ``image`` in place.

    ``ceil(density n / 2)`` of its n elements, drawn with replacement, become its maximum, then as
    many its minimum; then a normal draw times ``sigma`` is added to every element.
    """
    flat = image.reshape(-1)
    count = math.ceil(density * flat.size / 2)
    for extreme, purpose in ((image.max(), _SALT), (image.min(), _PEPPER)):
        flat[words(count, *key, purpose) % np.uint64(flat.size)] = extreme
    if sigma:
        flat += normal_draws(flat.size, (*key, _NORMAL)) * np.float32(sigma)
