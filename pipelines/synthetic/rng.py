"""Random streams that depend on names alone: never on order, process or earlier draws."""

from __future__ import annotations

import hashlib

import numpy as np

VERSION = 1
"""Version of the data set's content: raise it when any pixel of any frame changes."""


def stream(*key: str | int) -> np.random.Generator:
    """A generator of its own for ``key``.

    Philox (counter based, Salmon et al. 2011) keyed by the 128-bit BLAKE2b hash of the content
    version and ``key``. One stream per purpose keeps the sensors independent: adding a draw to one
    does not move the others.

    Args:
        key: what the stream is for, from general to special, such as seed, frame, ``"lidar"``.
    """
    digest = hashlib.blake2b(repr((VERSION, *key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
