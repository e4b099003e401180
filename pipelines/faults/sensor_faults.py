"""Faults of sensors, put into samples as they are read; drawn per sample, sensor and epoch.

They act on decoded images in the size of their files, before augmentation and rescaling, in the
same functions for both loaders. ``image_faults.py`` has what each does to an image,
``noise.py`` the noise of the robustness benchmark, which acts on the network's input.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property, lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from ..config import FAULTS, CorruptionConfig
from ..datasets.spec import ModalitySpec
from ..datasets.split_files import SplitFiles
from ..errors import DataError
from ..native.build import Array
from ..tools.keyed_random import CORRUPTION, uniforms
from ..tools.names import name_bytes
from .image_faults import gaussian, lidar_jitter, low_resolution, poisson, shift

Reader = Callable[[int, ModalitySpec, tuple[int, ...]], Array]
"""Sample number, modality and size to an image ``[3, H, W]``."""

_OF_CODES = ("gaussian", "poisson")
"""Faults that need to know what white is."""


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
        if getattr(config, fault) > 0 and not any(can_have(m, fault) for m in used):
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
    """True if a modality is among those that may be hit."""
    return not config.modalities or modality.name in config.modalities


def can_have(modality: ModalitySpec, fault: str) -> bool:
    """True if a fault is one of this modality's sensor and codes."""
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
            and can_have(modality, fault)
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
        """True if the faults drawn for a sample leave nothing of its own image."""
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
    """Number of times that each name was there before."""
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
