"""Files of one sample: written whole or not at all, checked by what they decode to."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..tools.whole_files import write_whole
from .config import SyntheticConfig
from .frame import render_frame
from .plan import FOLDERS, Frame

COMPRESS_LEVEL = 1
"""Noise does not compress: higher levels cost time and save little."""


@dataclass(frozen=True)
class Record:
    """Entry of the manifest about a sample.

    Attributes:
        hashes: relative path to SHA-256 of the decoded array, six of them.
        pixels: number of pixels per class id 0..24, then of ignored pixels.
    """

    hashes: dict[str, str]
    pixels: tuple[int, ...]


def array_hash(array: NDArray[np.uint8]) -> str:
    """SHA-256 of the shape and the values, which no PNG encoder can change."""
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def write_png(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an image that is never half a file."""
    png = io.BytesIO()
    Image.fromarray(array).save(png, format="PNG", compress_level=COMPRESS_LEVEL)
    # what a power cut spoils is found by its hash and rendered again
    write_whole(path, png.getvalue(), durable=False)


def read_sample(root: Path, frame: Frame) -> Record | None:
    """The record of a finished sample, or None when a file is missing or does not decode."""
    images: dict[str, NDArray[np.uint8]] = {}
    for folder in FOLDERS:
        try:
            with Image.open(root / frame.path(folder)) as image:
                images[folder] = np.asarray(image, dtype=np.uint8)
        except (OSError, SyntaxError):  # the latter: PIL's word for a broken PNG chunk
            return None
    return _record(frame, images)


def write_sample(root: Path, frame: Frame, config: SyntheticConfig) -> Record:
    """Render a sample and write its six files."""
    images = render_frame(frame, config)
    for folder, image in images.items():
        write_png(root / frame.path(folder), image)
    return _record(frame, images)


def _record(frame: Frame, images: dict[str, NDArray[np.uint8]]) -> Record:
    counts = np.bincount(images["semantic"][..., 0].ravel(), minlength=256)
    pixels = (*counts[1:26].tolist(), int(counts[0] + counts[26:].sum()))
    hashes = {str(frame.path(folder)): array_hash(images[folder]) for folder in FOLDERS}
    return Record(hashes, pixels)
