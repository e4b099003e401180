"""The noise protocol (NM) of the robustness benchmark, on the network's input.

Salt and pepper on every modality, then normal noise on all but events, in normalised units
(arXiv:2503.18445, ``tools/val_mm_NM.py``). Two departures, so that a score can be repeated and does
not depend on the batch size: draws belong to the sample, and salt and pepper are the extremes of
the sample's image, not of the batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import NOISE
from ..faults.sensor_faults import may_hit, normal_draws, stream_key
from ..tools.keyed_random import words
from ..transform.normalise import Normaliser, stacked
from .plan import Plan

_SALT, _PEPPER, _NORMAL = (zlib.crc32(name) for name in (b"salt", b"pepper", b"normal"))


def noisy(
    codes: Sequence[Tensor], plan: Plan, step: int, normalise: Normaliser
) -> tuple[Tensor, ...]:
    """The normalised images of a step with their noise: per modality ``[B, 3, H, W]`` float32.

    Random words are drawn on the host, so that the noise does not depend on the device; images come
    back to where their codes are.
    """
    epoch, indices = plan.order.at(step)
    density, sigma = NOISE[plan.corruption.noise]
    images = normalise([code.cpu() for code in codes])
    for modality, image in zip(plan.files.modalities, images, strict=True):
        if not may_hit(plan.corruption, modality):
            continue
        for index, one in zip(indices, image, strict=True):
            key = stream_key(plan.corruption, plan.seed, epoch, plan.files, index, modality)
            add_noise(one.numpy(), density, 0 if modality.sensor == "event" else sigma, key)
    return tuple(image.to(code.device) for image, code in zip(images, codes, strict=True))


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


def finisher(plan: Plan) -> Callable[..., Tensor]:
    """What makes network input of the codes of a batch: images with noise are that already."""
    if plan.corruption.noise != "none":
        return partial(stacked, layout=plan.config.layout)
    return Normaliser(plan.files.modalities, plan.config.layout)
