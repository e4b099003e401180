"""Projected images as the files that networks read."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..datasets.catalogue.muses import CODE_SHIFT, CODE_STEPS

_UP = 2
"""PNG filter: each byte minus the one above, which turns empty areas into zeros."""


def encode_values(values: NDArray[np.float32]) -> bytes:
    """A 16-bit RGB PNG with code = trunc((value + 100) * 150), channels in reverse.

    Computed in float32 as the SDK does, with OpenCV's order of channels.
    """
    codes = (values + np.float32(CODE_SHIFT)) * np.float32(CODE_STEPS)
    return _png16(codes.clip(0, 65535).astype(np.uint16)[:, :, ::-1])


def encode_counts(counts: NDArray[np.uint8]) -> bytes:
    """An 8-bit RGB PNG of the counts, channels in reverse."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(counts[:, :, ::-1])).save(file, "PNG")
    return file.getvalue()


def _png16(pixels: NDArray[np.uint16]) -> bytes:
    """PIL writes no 16-bit RGB."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    above = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.concatenate([np.full((height, 1), _UP, np.uint8), rows - above], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", header),
            (b"IDAT", zlib.compress(filtered.tobytes(), 6)),
            (b"IEND", b""),
        )
    )
