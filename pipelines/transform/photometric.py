"""Photometric augmentation of camera images: colour jitter and Gaussian blur, drawn per sample.

The rules are those of ``semseg/augmentations_mm.py`` in the DELIVER repository, which calls
torchvision on uint8 images: each step of the jitter is clamped and truncated, the blur is rounded.
Definitions are in NumPy; ``pixels.c`` has the same with the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import DataConfig
from ..datasets.spec import ModalitySpec
from ..native import build as native
from ..native.build import Array
from ..tools.keyed_random import LOOKS, sample_uniforms

_GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in torchvision's ``rgb_to_grayscale``."""
_IDENTITY = 1e-3
"""A standard deviation at which all weight is in the middle."""


@dataclass(frozen=True)
class Looks:
    """The photometric draws for one sample in one epoch; None where nothing is to be done."""

    jitter: tuple[float, float, float] | None = None
    """Factors of brightness, contrast and saturation."""
    blur: float | None = None
    """Standard deviation in pixels."""

    def vector(self) -> NDArray[np.float32]:
        """All draws ``[4]``, -1 for those that are None."""
        return np.array([*(self.jitter or (-1, -1, -1)), self.blur or -1], np.float32)

    @staticmethod
    def from_vector(vector: NDArray[np.float32]) -> Looks:
        """Inverse of ``vector``."""
        *factors, sigma = vector.tolist()
        brightness, contrast, saturation = factors
        return Looks(
            jitter=None if brightness < 0 else (brightness, contrast, saturation),
            blur=None if sigma < 0 else sigma,
        )


def is_photo(modality: ModalitySpec) -> bool:
    """True if photometric augmentation applies: cameras whose images are codes of 8 or 16 bits."""
    return modality.sensor == "camera" and modality.dtype.kind == "u"


def draw_looks(seed: int, epoch: int, index: int, config: DataConfig) -> Looks:
    """Draw for sample ``index``: each part with its probability, uniform in its range.

    Values are those of float32, in which DALI is given them.
    """
    u = sample_uniforms(seed, epoch, index, 6, LOOKS)

    def uniform(position: int, low: float, high: float) -> float:
        return float(np.float32(low + (high - low) * u[position]))

    brightness, contrast, saturation = (uniform(i, *config.jitter_range) for i in (1, 2, 3))
    sigma = uniform(5, *config.blur_sigma)
    return Looks(
        jitter=(brightness, contrast, saturation) if u[0] < config.jitter else None,
        blur=sigma if u[4] < config.blur and sigma > 0 else None,
    )


class Augmenter:
    """Carries out the photometric draws of a sample on its camera images."""

    def __init__(self, looks: Looks, config: DataConfig) -> None:
        self._looks, self._config = looks, config

    def before(self, image: Array) -> Array:
        """The whole ``image [3, H, W]`` after what comes before the crop."""
        looks, functions = self._looks, compiled()
        if looks.jitter is not None:
            image = jitter(image, looks.jitter, functions)
        if looks.blur is not None and self._config.blur_place == "image":
            image = blur(image, looks.blur, self._config.blur_window, functions)
        return image

    def after(self, crop: Array) -> None:
        """Change the finished ``crop [3, h, w]`` in place."""
        sigma = self._looks.blur
        if sigma is not None and self._config.blur_place == "crop":
            crop[...] = blur(crop, sigma, self._config.blur_window, compiled())

    def crop_blur(self) -> tuple[float, int]:
        """Sigma and width of a kernel that does what ``after`` does, for other libraries."""
        sigma = self._looks.blur
        if sigma is None or self._config.blur_place != "crop":
            return _IDENTITY, 3
        return sigma, self._config.blur_window or opencv_window(sigma)

    def vector(self) -> NDArray[np.float32]:
        """The draws; see ``Looks``."""
        return self._looks.vector()


def jitter(
    image: Array, factors: Sequence[float], functions: native.Functions | None = None
) -> Array:
    """Brightness, then contrast, then saturation of ``image [3, H, W]`` (uint8 or uint16).

    Each is ``f x + (1 - f) y``, clamped to the range of codes and truncated, with y = 0, the mean
    grey value of the image, and the grey value of the pixel.
    """
    brightness, contrast, saturation = factors
    brighter = blend_table(brightness, 0.0, image.dtype)
    centre = mean_grey(image, brighter, functions)
    table = blend_table(contrast, centre, image.dtype)[brighter]
    keep, rest = np.float32(saturation), np.float32(1 - saturation)
    white = np.float32(np.iinfo(image.dtype).max)
    if functions is None:
        x = table[image].astype(np.float32)
        y = keep * x + rest * _grey(x)
        return np.clip(y, 0, white).astype(image.dtype)
    image, (lane, stride, pixel) = native.plain(image)
    result = np.empty_like(image)
    values = table.astype(np.float32)
    function = functions[f"saturate_{image.dtype.name}"]
    function(
        *(image.ctypes.data, lane, stride, pixel, *image.shape[1:], values.ctypes.data),
        *(float(keep), float(rest), float(white), result.ctypes.data, *native.steps(result)[:2]),
    )
    return result


def blend_table(factor: float, other: float, dtype: np.dtype[Any]) -> Array:
    """``f x + (1 - f) y`` for every code x: clamped and truncated."""
    codes = np.arange(np.iinfo(dtype).max + 1, dtype=np.float32)
    values = np.float32(factor) * codes + np.float32(1 - factor) * np.float32(other)
    table: Array = np.clip(values, 0, codes[-1]).astype(dtype)
    return table


def mean_grey(image: Array, table: Array, functions: native.Functions | None = None) -> float:
    """Mean of the truncated grey values of ``table[image]``."""
    if functions is None:
        total = int(_grey(table[image].astype(np.float32)).sum(dtype=np.int64))
    else:
        image, (lane, stride, pixel) = native.plain(image)
        function = functions[f"grey_sum_{image.dtype.name}"]
        start, values = (image.ctypes.data, lane, stride, pixel), table.astype(np.float32)
        total = int(function(*start, *image.shape[1:], values.ctypes.data))
    return total / int(image.shape[1] * image.shape[2])


def blur(
    image: Array, sigma: float, window: int, functions: native.Functions | None = None
) -> Array:
    """Gaussian blur of ``image [3, H, W]`` (uint8 or uint16), rounded to the nearest code.

    Borders are mirrored without repeating the edge. ``window`` is the width of the kernel; 0 takes
    OpenCV's rule for ``sigma``, ``round(6 sigma + 1) | 1``.
    """
    weights = gaussian(sigma, window)
    if functions is None:
        down = _convolved(image.astype(np.float32), weights, axis=1)
        result: Array = np.rint(_convolved(down, weights, axis=2)).astype(image.dtype)
        return result
    image, (lane, stride, pixel) = native.plain(image)
    result = np.empty_like(image)
    row = np.empty((2 * image.shape[2] + len(weights)) * pixel, np.float32)
    function = functions[f"blur_{image.dtype.name}"]
    function(
        *(image.ctypes.data, lane, stride, len(image), int(pixel > 1), *image.shape[1:]),
        *(weights.ctypes.data, len(weights), row.ctypes.data),
        *(result.ctypes.data, *native.steps(result)[:2]),
    )
    return result


def gaussian(sigma: float, window: int) -> NDArray[np.float32]:
    """Weights of the kernel, of sum 1."""
    taps = window or opencv_window(sigma)
    offset = np.arange(taps) - taps // 2
    weights = np.exp(-0.5 * (offset / sigma) ** 2)
    normalised: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return normalised


def opencv_window(sigma: float) -> int:
    """Width of the kernel that OpenCV takes for 8-bit images unless told."""
    return round(6 * sigma + 1) | 1


@lru_cache(maxsize=1)
def compiled() -> native.Functions | None:
    """The C functions, or None where NumPy serves."""
    loaded = native.library().loaded
    if loaded is None:
        return None
    functions = _bound(loaded)
    return functions if _agrees(functions) else None


def _agrees(functions: native.Functions) -> bool:
    """True if a small image comes out with the bits of NumPy: compilers differ."""
    codes = np.arange(37 * 41 * 3, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(16)
    for dtype in (np.uint8, np.uint16):
        image = codes.astype(dtype).reshape(37, 41, 3).transpose(2, 0, 1)
        factors = 1.31, 0.77, 1.42
        if not np.array_equal(jitter(image, factors, functions), jitter(image, factors)):
            return False
        if not np.array_equal(blur(image, 0.8, 3, functions), blur(image, 0.8, 3)):
            return False
    return True


def _bound(loaded: ctypes.CDLL) -> native.Functions:
    pointer, step, number, real = native.POINTER, native.STEP, native.INT, native.FLOAT
    head, tail = (pointer, step, step, number), (pointer, step, step)
    size, dtypes = (number, number), ("uint8", "uint16")
    return {
        **native.bind(
            loaded, "blur", dtypes, *head, number, *size, pointer, number, pointer, *tail
        ),
        **native.bind(loaded, "grey_sum", dtypes, *head, *size, pointer, result=ctypes.c_int64),
        **native.bind(loaded, "saturate", dtypes, *head, *size, pointer, real, real, real, *tail),
    }


def _grey(x: NDArray[np.float32]) -> NDArray[np.float32]:
    red, green, blue = (np.float32(weight) for weight in _GREY)
    grey: NDArray[np.float32] = np.trunc(red * x[0] + green * x[1] + blue * x[2])
    return grey


def _convolved(
    x: NDArray[np.float32], weights: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    half, length = len(weights) // 2, x.shape[axis]
    # NumPy's reflect mode refuses images that are smaller than the kernel
    index = np.abs(np.arange(-half, length + half))
    period = max(1, 2 * (length - 1))
    index %= period
    index = np.minimum(index, period - index) if length > 1 else index * 0
    padded = x.take(index, axis=axis)
    total: NDArray[np.float32] = weights[0] * padded.take(range(length), axis=axis)
    for k, weight in enumerate(weights[1:], start=1):
        total += weight * padded.take(range(k, k + length), axis=axis)
    return total
