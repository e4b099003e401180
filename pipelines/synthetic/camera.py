"""The camera: radiance to 8-bit RGB, with its weather and its failures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .catalogue import EXPOSURE_GAIN, Weather
from .render import Geometry
from .world import FloatArray

_GAMMA = 1 / 2.2
_READ_NOISE = 0.010
_SHOT_NOISE = 0.028
_BLUR_STEP = 0.55
"""Metres driven during the exposure of a blurred frame."""


def expose(
    radiance: FloatArray,
    geometry: Geometry,
    weather: Weather,
    rng: np.random.Generator,
    *,
    condition: str,
    case: str,
) -> NDArray[np.uint8]:
    """Take the picture: blur, streaks, gain, noise, gamma, 8 bit.

    Args:
        radiance: ``[H, W, 3]`` linear, after the air.
        geometry: for the depth of the blur.
        weather: noise level.
        rng: the camera's own stream.
        condition: rain adds streaks.
        case: ``motionblur``, ``overexposure`` and ``underexposure`` act here; others do not.

    Returns:
        ``[H, W, 3]`` uint8.
    """
    if case == "motionblur":
        radiance = _blur(radiance, geometry, rng)
    if condition == "rain":
        radiance = radiance + _streaks(len(radiance), rng)[..., None]
    signal = radiance * np.float32(EXPOSURE_GAIN.get(case, 1.0))
    sigma = np.sqrt(np.maximum(signal, 0)) * _SHOT_NOISE + _READ_NOISE
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    signal = signal + noise * sigma * np.float32(weather.camera_noise)
    return np.asarray(np.rint(255 * np.clip(signal, 0, 1) ** np.float32(_GAMMA)), np.uint8)


def _blur(radiance: FloatArray, geometry: Geometry, rng: np.random.Generator) -> FloatArray:
    """Mean of five sub-exposures along the path, each warped with the known depth.

    Driving a step s moves a pixel away from the horizon's centre by the factor s / Z; shaking moves
    all pixels alike.
    """
    size = len(radiance)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    centre_row = geometry.focal * geometry.slope_y[:, None]
    centre_column = geometry.focal * geometry.slope_x
    shake = rng.uniform(-0.018, 0.018, 2) * geometry.focal
    total = np.zeros_like(radiance)
    for part in np.linspace(-1, 1, 5):
        zoom = np.float32(part * _BLUR_STEP) / np.maximum(geometry.depth, 2)
        r = rows - centre_row * zoom + np.float32(part * shake[0])
        c = columns + centre_column * zoom + np.float32(part * shake[1])
        index = np.clip(np.rint(np.stack([r, c])), 0, size - 1).astype(np.int32)
        total += radiance[index[0], index[1]]
    return np.asarray(total / 5, np.float32)


def _streaks(size: int, rng: np.random.Generator) -> FloatArray:
    """Falling drops: bright, short, slightly slanted lines, as many per area at any size."""
    image = np.zeros((size, size), np.float32)
    count, length = 160, max(3, size // 14)
    row, column = rng.integers(0, size, count), rng.integers(0, size, count)
    bright = rng.uniform(0.03, 0.12, count).astype(np.float32)
    for i in range(length):
        image[(row + i) % size, (column + i // 5) % size] += bright
    return image
