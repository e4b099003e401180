"""Faults of sensors, put into samples as they are read; drawn per sample, sensor and epoch.

They act on decoded images in the size of their files, before augmentation and rescaling, in the
same functions for both loaders. ``noise.py`` has the noise of the robustness benchmark, which acts
on the network's input.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property, lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ..config import FAULTS, CorruptionConfig
from ..datasets.spec import ModalitySpec
from ..datasets.split_files import SplitFiles
from ..decode.by_spec import resampled
from ..errors import DataError
from ..native.build import Array
from ..tools.keyed_random import CORRUPTION, uniforms, words
from ..tools.names import name_bytes
from ..transform.geometry import Geometry
from ..transform.resample import resize

Reader = Callable[[int, ModalitySpec, tuple[int, ...]], Array]
"""Sample number, modality and size to an image ``[3, H, W]``."""

_OF_CODES = ("gaussian", "poisson")
"""Faults that need to know what white is."""
_LEVELS = 4096
"""Quantiles of a Poisson distribution that are told apart."""


def describe(config: CorruptionConfig) -> str:
    """The settings that differ from none, as ``noise high, blackout 1``; or ``none``."""
    if not config.active:
        return "none"
    plain = CorruptionConfig()
    changed = {f.name: getattr(config, f.name) for f in fields(config)}
    return ", ".join(
        f"{name} {' '.join(value) if isinstance(value, tuple) else value}"
        for name, value in changed.items()
        if value != getattr(plain, name)
    )


def check_corruption(config: CorruptionConfig, files: SplitFiles) -> None:
    """Refuse faults that cannot hit anything.

    Raises:
        DataError: a modality is unknown, none of those in use is of a sensor with a fault that is
            asked for, or no sample has one before it to freeze.
    """
    if config.modalities:
        files.spec.select(config.modalities)
    used = [m for m in files.modalities if may_hit(config, m)]
    names = ", ".join(f"{m.name} ({m.sensor}, {m.dtype.name})" for m in files.modalities)
    among = f" among {', '.join(config.modalities)}" if config.modalities else ""
    if config.active and not used:
        raise DataError(
            f"no modality in use is{among}, so that no fault can hit one; they are {names}. "
            "Name others, or leave the corruption out"
        )
    for fault, sensors in FAULTS.items():
        if getattr(config, fault) > 0 and not any(_can_have(m, fault) for m in used):
            codes = " with 8- or 16-bit codes" if fault in _OF_CODES else ""
            raise DataError(
                f"{fault} is for sensors of kind {', '.join(sensors)}{codes}, but there is "
                f"none{among}; the modalities are {names}. Leave it out, or name others"
            )
    if config.freeze > 0 and not Corruptor(config, files, 0).before:
        raise DataError(
            f"freeze repeats the sample before in a scene, but no two samples of {files.spec.name} "
            f"have names that differ only in the number at their end, such as "
            f"{files.sample_ids[0]}. Leave it out"
        )


def may_hit(config: CorruptionConfig, modality: ModalitySpec) -> bool:
    """Whether a modality is among those that may be hit."""
    return not config.modalities or modality.name in config.modalities


def _can_have(modality: ModalitySpec, fault: str) -> bool:
    if fault in _OF_CODES and modality.dtype.kind != "u":
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
            if getattr(config, fault) > 0
            and may_hit(config, modality)
            and _can_have(modality, fault)
        )

    def __call__(
        self, image: Array, modality: ModalitySpec, epoch: int, index: int, read: Reader
    ) -> Array:
        """``image [3, H, W]`` of sample ``index`` with the faults drawn for it in ``epoch``."""
        drawn = self._drawn(modality, epoch, index)
        # what is dark in the end need not be made
        names = ["blackout"] if "blackout" in drawn else list(drawn)
        for fault in names:
            u, key = drawn[fault]
            image = self._put(fault, image, modality, u, key, index, read)
        return image

    def discards(self, modality: ModalitySpec, epoch: int, index: int) -> bool:
        """Whether the faults drawn for a sample leave nothing of its own image."""
        if not {"freeze", "blackout"}.intersection(self.faults(modality)):
            return False
        drawn = self._drawn(modality, epoch, index)
        return "blackout" in drawn or ("freeze" in drawn and index in self.before)

    def _drawn(
        self, modality: ModalitySpec, epoch: int, index: int
    ) -> dict[str, tuple[list[float], tuple[int, ...]]]:
        """The faults that hit, in their order: three uniform draws and the key of more."""
        faults = self.faults(modality)
        if not faults:
            return {}
        start = stream_key(self._config, self._seed, epoch, self._files, index, modality)
        found = {}
        for fault in faults:
            key = (*start, zlib.crc32(fault.encode()))
            hit, *u = uniforms(4, *key).tolist()
            if hit < getattr(self._config, fault):
                found[fault] = u, (*key, 1)
        return found

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
            before = self.before.get(index)
            return image if before is None else read(before, modality, image.shape[1:])
        if fault == "low_resolution":
            return low_resolution(image, config.low_resolution_factor)
        if fault == "lidar_jitter":
            turn = config.lidar_jitter_turn * NormalDist().inv_cdf(max(u[0], 2.0**-53))
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
    def before(self) -> dict[int, int]:
        """Number of the sample whose name has the next smaller number at its end, if any."""
        places = [_place(sample_id) for sample_id in self._files.sample_ids]
        scenes: dict[str, dict[int, int]] = {}
        for index, (scene, number) in enumerate(places):
            scenes.setdefault(scene, {}).setdefault(number, index)
        earlier = {
            (scene, now): frames[then]
            for scene, frames in scenes.items()
            for then, now in pairwise(sorted(frames))
        }
        return {index: earlier[place] for index, place in enumerate(places) if place in earlier}


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


def stream_key(
    config: CorruptionConfig,
    seed: int,
    epoch: int,
    files: SplitFiles,
    index: int,
    modality: ModalitySpec,
) -> tuple[int, ...]:
    """The start of the keys of all draws for one sensor in one sample and epoch.

    It has the sample's name, not its number, and so does not depend on what else is in the split;
    a sample that is listed several times has other draws each time.
    """
    digest = hashlib.sha256(name_bytes(f"{files.sample_ids[index]}\0{modality.name}")).digest()
    name = int.from_bytes(digest[:8], "little")
    return seed, CORRUPTION, config.seed, epoch, name, _copies(files.sample_ids)[index]


@lru_cache(maxsize=2)
def _copies(sample_ids: tuple[str, ...]) -> tuple[int, ...]:
    """How often each name was there before."""
    seen: Counter[str] = Counter()
    found = []
    for sample_id in sample_ids:
        found.append(seen[sample_id])
        seen[sample_id] += 1
    return tuple(found)


def _place(sample_id: str) -> tuple[str, int]:
    """Scene and number of a sample."""
    scene = sample_id.rstrip("0123456789")
    return scene, int(sample_id[len(scene) :] or 0)


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
