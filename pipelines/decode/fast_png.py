"""PNG pixels by imagecodecs where it is installed; where it is not, or refuses a file, PIL decodes.

It gives the same pixels in less time (``bench/results/cpu/decode_times.md``). Which files are read,
and what is said of the others, is PIL's: imagecodecs accepts no damage that PIL refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from . import png


@lru_cache(maxsize=1)
def decoder() -> Callable[[bytes], NDArray[Any]] | None:
    """The function of imagecodecs; None if it, or the PNG codec of this build of it, is missing."""
    try:
        module = import_module("imagecodecs")
        found: Callable[[bytes], NDArray[Any]] = module.png_decode
        return found if module.PNG.available else None
    except (ImportError, AttributeError):
        return None


def pixels(data: bytes) -> NDArray[Any] | None:
    """Pixels ``[H, W]`` (grey) or ``[H, W, C]`` of 8 or 16 bits; None where PIL has to decode.

    Args:
        data: a PNG whose header and checksums have been checked.
    """
    decode = decoder()
    if decode is None or not png.is_plain(data):
        return None
    try:
        return decode(data)
    except (RuntimeError, ValueError):  # PIL finds the words, or reads it
        return None
