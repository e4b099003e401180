"""The change that each fault makes to one decoded image, given what was drawn for it."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ..decode.by_spec import resampled
from ..native.build import Array
from ..tools.keyed_random import words
from ..transform.geometry import Geometry
from ..transform.resample import resize

_LEVELS = 4096
"""Quantiles of a Poisson distribution that are told apart."""


def low_resolution(image: Array, factor: float) -> Array:
    """The image at ``factor`` of its size, brought back by nearest."""
    height, width = image.shape[1:]
    low = max(1, round(height * factor)), max(1, round(width * factor))
    down = Geometry(resampled(height, low[0]), resampled(width, low[1]))
    up = Geometry(resampled(low[0], height), resampled(low[1], width))
    return resize(resize(image, down, "nearest"), up, "nearest")


def lidar_jitter(
    image: Array, empty: float, turn: float, spread: float, key: tuple[int, ...]
) -> Array:
    """Every return at another place: all turned by ``turn`` rad, each moved by a normal draw.

    A turn moves the picture of a camera with 90 degrees field of view by ``W/2 tan(turn)`` columns.
    The draw has the standard deviation ``spread`` times the height on both axes. Where two returns
    meet, the one with the smaller first channel stays, which is the range.
    """
    _, height, width = image.shape
    rows, cols = np.nonzero((image != empty).any(axis=0))
    codes = image[:, rows, cols]
    order = np.argsort(codes[0], kind="stable")[::-1]
    normals = normal_draws(2 * len(rows), key).reshape(2, -1) * (spread * height)
    # moves belong to the pixel, whatever comes of the order
    new_rows = np.rint(rows + normals[0]).astype(np.int64)
    new_cols = np.rint(cols + normals[1] + width / 2 * math.tan(turn)).astype(np.int64)
    inside = (new_rows >= 0) & (new_rows < height) & (new_cols >= 0) & (new_cols < width)
    order = order[inside[order]]
    moved: Array = np.full(image.shape, empty, image.dtype)
    moved[:, new_rows[order], new_cols[order]] = codes[:, order]
    return moved


def gaussian(image: Array, sigma: float, key: tuple[int, ...]) -> Array:
    """Additive normal noise of ``sigma`` times white, rounded and cut to the range of codes."""
    white = np.float32(np.iinfo(image.dtype).max)
    values = normal_draws(image.size, key).reshape(image.shape)
    values *= np.float32(sigma) * white
    values += image
    np.rint(values, out=values)
    noisy: Array = np.clip(values, 0, white, out=values).astype(image.dtype)
    return noisy


def poisson(image: Array, photons: float, key: tuple[int, ...]) -> Array:
    """Shot noise: the number of photons is Poisson, with mean ``photons`` at white.

    16-bit codes have the mean of their upper byte.
    """
    white = np.iinfo(image.dtype).max
    level = image if white == 255 else image >> 8
    drawn = words(-(-image.size // 4), *key).view(np.uint16)[: image.size] >> np.uint16(4)
    cell = level.astype(np.int32) * np.int32(_LEVELS)
    cell += drawn.reshape(image.shape)
    share = _poisson_quantiles(photons).take(cell)
    noisy: Array = np.clip(np.rint(share * np.float32(white)), 0, white).astype(image.dtype)
    return noisy


def shift(image: Array, empty: float, down: int, right: int) -> Array:
    """The image moved by whole pixels, with ``empty`` where nothing comes from."""
    _, height, width = image.shape
    moved: Array = np.full(image.shape, empty, image.dtype)
    to_rows, from_rows = _overlap(down, height)
    to_cols, from_cols = _overlap(right, width)
    moved[:, to_rows, to_cols] = image[:, from_rows, from_cols]
    return moved


def normal_draws(count: int, key: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers by 65536 quantiles, so that they need no generator but raw words."""
    drawn = words(-(-count // 4), *key).view(np.uint16)[:count]
    values: NDArray[np.float32] = _normal_quantiles().take(drawn)
    return values


@lru_cache(maxsize=1)
def _normal_quantiles() -> NDArray[np.float32]:
    inverse = NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / 65536) for i in range(65536)], np.float32)


@lru_cache(maxsize=4)
def _poisson_quantiles(photons: float) -> NDArray[np.float32]:
    """Photons over ``photons`` at each quantile, for each of the 256 brightnesses in turn."""
    middle = (np.arange(_LEVELS) + 0.5) / _LEVELS
    most = int(photons + 10 * math.sqrt(photons) + 20)
    counts = np.arange(most + 1)
    log_factorial = np.cumsum(np.log(np.maximum(counts, 1)))
    table = np.zeros((256, _LEVELS), np.float32)
    for level in range(1, 256):
        mean = photons * level / 255
        cumulative = np.cumsum(np.exp(counts * math.log(mean) - mean - log_factorial))
        table[level] = np.searchsorted(cumulative, middle) / photons
    return table.reshape(-1)


def _overlap(move: int, length: int) -> tuple[slice, slice]:
    """Ranges that pixels go to and come from, on one axis."""
    move = max(-length, min(length, move))
    return slice(max(0, move), length + min(0, move)), slice(max(0, -move), length - max(0, move))
