"""The elements that random-missing (RMM) of the robustness benchmark takes from a sensor's image.

Each element, channel by channel, is zeroed by itself with some probability, after normalisation
(arXiv:2503.18445, ``tools/val_mm_RMM.py``). There a mask is drawn anew for every batch and subset,
without a seed; here it belongs to the sample and the sensor, so that a score can be repeated and
depends neither on the batch size nor on the number of processes. What is gone with a small
probability is gone with every larger one.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..config import CorruptionConfig
from ..datasets.split_files import SplitFiles
from ..tools.keyed_random import words
from .sensor_faults import stream_key

_MISSING = zlib.crc32(b"missing elements")
_STEPS = 2**16


def kept_elements(
    files: SplitFiles, indices: Sequence[int], shape: Sequence[int], removed: float, seed: int
) -> NDArray[np.bool_]:
    """True for the elements that are left, ``[M, B, *shape]``.

    Args:
        files: the split, with its M modalities.
        indices: numbers of the B samples.
        shape: of one image, ``(3, H, W)``.
        removed: probability that an element goes, in steps of ``2**-16``.
        seed: another one draws other masks.
    """
    count = int(np.prod(shape))
    least, config = round(removed * _STEPS), CorruptionConfig(seed=seed)
    kept = np.empty((len(files.modalities), len(indices), count), np.bool_)
    for m, modality in enumerate(files.modalities):
        for b, index in enumerate(indices):
            key = (*stream_key(config, 0, 0, files, index, modality), _MISSING)
            kept[m, b] = words(-(-count // 4), *key).view(np.uint16)[:count] >= least
    return kept.reshape(len(files.modalities), len(indices), *shape)
