"""Faults of sensors, put into samples as they are read; drawn per sample, sensor and epoch.

They act on decoded images in the size of their files, before augmentation and rescaling, in the
same functions for both loaders. ``noise.py`` has the noise of the robustness benchmark, which acts
on the network's input.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property, lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .config import CorruptionConfig
from .decode import resampled
from .errors import DataError
from .files import SplitFiles
from .geometry import Geometry
from .native import Array
from .order import CORRUPTION, uniforms, words
from .resample import resize
from .spec import DatasetSpec, ModalitySpec, Sensor

Reader = Callable[[int, ModalitySpec, tuple[int, ...]], Array]
"""Sample number, modality and size to an image ``[3, H, W]``."""

_ANY: tuple[Sensor, ...] = ("camera", "event", "lidar", "other")
FAULTS: dict[str, tuple[Sensor, ...]] = {
    "freeze": _ANY,
    "low_resolution": ("event",),
    "lidar_jitter": ("lidar",),
    "gaussian": ("camera",),
    "poisson": ("camera",),
    "shift": _ANY,
    "blackout": _ANY,
}
"""The faults, in the order in which they act, and the sensors that each is for."""
_LEVELS = 4096
"""Quantiles of a Poisson distribution that are told apart."""


def describe(config: CorruptionConfig) -> str:
    """The settings that differ from none, as ``noise high, blackout 1``."""
    plain = CorruptionConfig()
    changed = {f.name: getattr(config, f.name) for f in fields(config)}
    return ", ".join(
        f"{name} {' '.join(value) if isinstance(value, tuple) else value}"
        for name, value in changed.items()
        if value != getattr(plain, name)
    )


def check_corruption(
    config: CorruptionConfig, spec: DatasetSpec, modalities: Sequence[ModalitySpec]
) -> None:
    """Refuse faults that cannot hit anything.

    Raises:
        DataError: a modality is unknown, or none of those in use is of a sensor with this fault.
    """
    if config.modalities:
        spec.select(config.modalities)
    for fault, sensors in FAULTS.items():
        if getattr(config, fault) > 0 and not any(_can_have(config, m, fault) for m in modalities):
            names = ", ".join(f"{m.name} ({m.sensor})" for m in modalities)
            chosen = f" among {', '.join(config.modalities)}" if config.modalities else ""
            raise DataError(
                f"{fault} is for sensors of kind {', '.join(sensors)}, but there is none{chosen}; "
                f"the modalities are {names}. Leave it out, or name others"
            )


def _can_have(config: CorruptionConfig, modality: ModalitySpec, fault: str) -> bool:
    if config.modalities and modality.name not in config.modalities:
        return False
    if fault in ("gaussian", "poisson") and modality.dtype.kind != "u":
        return False
    return modality.sensor in FAULTS[fault]


class Corruptor:
    """Puts the faults of a config into the images of a split."""

    def __init__(self, config: CorruptionConfig, files: SplitFiles, seed: int) -> None:
        self._config, self._files, self._seed = config, files, seed

    def faults(self, modality: ModalitySpec) -> tuple[str, ...]:
        """The faults that may hit a modality, in their order."""
        config = self._config
        return tuple(
            fault
            for fault in FAULTS
            if getattr(config, fault) > 0 and _can_have(config, modality, fault)
        )

    def __call__(
        self, image: Array, modality: ModalitySpec, epoch: int, index: int, read: Reader
    ) -> Array:
        """``image [3, H, W]`` of sample ``index`` with the faults drawn for it in ``epoch``."""
        faults = self.faults(modality)
        if not faults:
            return image
        key = (self._seed, CORRUPTION, epoch, name_key(self._files.sample_ids[index], modality))
        for fault in faults:
            own = (*key, zlib.crc32(fault.encode()))
            hit, *u = uniforms(4, *own).tolist()
            if hit < getattr(self._config, fault):
                image = self._put(fault, image, modality, u, (*own, 1), index, read)
        return image

    def _put(
        self,
        fault: str,
        image: Array,
        modality: ModalitySpec,
        u: list[float],
        key: tuple[int, ...],
        index: int,
        read: Reader,
    ) -> Array:
        config = self._config
        if fault == "freeze":
            before = self._before.get(index, index)
            return read(before, modality, image.shape[1:])
        if fault == "low_resolution":
            return low_resolution(image, config.low_resolution_factor)
        if fault == "lidar_jitter":
            turn = NormalDist(0, config.lidar_jitter_turn).inv_cdf(max(u[0], 2.0**-53))
            return lidar_jitter(image, modality.empty, turn, config.lidar_jitter_spread, key)
        if fault == "gaussian":
            return gaussian(image, config.gaussian_sigma, key)
        if fault == "poisson":
            return poisson(image, config.poisson_photons, key)
        if fault == "shift":
            reach = config.shift_by * min(image.shape[1:])
            return shift(image, modality.empty, *(round((2 * x - 1) * reach) for x in u[:2]))
        return np.full(image.shape, modality.empty, image.dtype)

    @cached_property
    def _before(self) -> dict[int, int]:
        """Number of the sample whose name has the next smaller number at its end, if any."""
        scenes: dict[str, list[tuple[int, int]]] = {}
        for index, sample_id in enumerate(self._files.sample_ids):
            scene, number = re.fullmatch(r"(.*?)(\d*)", sample_id, re.DOTALL).groups()  # type: ignore[union-attr]
            scenes.setdefault(scene, []).append((int(number or 0), index))
        return {
            now: before
            for frames in scenes.values()
            for (_, before), (_, now) in pairwise(sorted(frames))
        }


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


def name_key(sample_id: str, modality: ModalitySpec) -> int:
    """A number for a sample and modality that does not depend on what else is in the split."""
    digest = hashlib.sha256(f"{sample_id}\0{modality.name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


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
    """Where pixels go and where they come from, on one axis."""
    move = max(-length, min(length, move))
    return slice(max(0, move), length + min(0, move)), slice(max(0, -move), length - max(0, move))
