"""Random numbers that belong to a key: a seed, a purpose, and what they are drawn for.

Only raw Philox words are used, whose values NumPy guarantees across versions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PERMUTATION, GEOMETRY, LOOKS, CORRUPTION = range(4)
"""Purpose of a stream, part of its key, so that no two purposes share numbers."""


def sample_uniforms(
    seed: int, epoch: int, index: int, count: int, purpose: int = GEOMETRY
) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) that belong to one sample in one epoch."""
    return uniforms(count, seed, purpose, epoch, index)


def uniforms(count: int, *key: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) of the stream ``key``."""
    # 53 bits fill the mantissa of a double
    return (words(count, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def words(count: int, *key: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit words of the stream ``key``."""
    stream = np.random.Philox(np.random.SeedSequence(key))
    drawn: NDArray[np.uint64] = stream.random_raw(count)
    return drawn
