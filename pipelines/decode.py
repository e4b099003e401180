"""File bytes to 8-bit arrays under declared rules; anything else is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError
from .spec import ILLEGAL, DatasetSpec

Pixels = NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
"""Colour type of a PNG whose pixels are indices."""
_MODES = ("L", "LA", "RGB", "RGBA", "P")
# everything PIL was seen to raise on damaged files
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; restore it") from error


def check_header(data: bytes, path: Path, *, label: bool) -> tuple[int, int]:
    """Height and width in pixels, after checking that the format is one we decode exactly.

    Only header and end are looked at. 16-bit files would lose their low byte without a word, and
    the indices of a palette PNG would become colours in some decoders, so both are refused.

    Raises:
        DataError: not an image, another bit depth, or a palette PNG as label.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height, mode = image.width, image.height, image.mode
    except _DAMAGE as error:
        raise _damaged(path, len(data), error) from error
    depth, palette = 8, mode == "P"
    if data.startswith(_PNG):
        end = data.rfind(b"IEND")
        if not 0 <= end <= len(data) - 8:
            # PIL forgives this once all pixels are read, DALI does not
            raise _damaged(path, len(data), EOFError("the end of the PNG is missing"))
        depth, palette = data[24], data[25] == _PALETTE
    if mode not in _MODES or (depth != 8 and not palette):
        raise DataError(
            f"{path} has {depth} bits per channel (mode {mode}); expected 8-bit grey or RGB. "
            "Convert it to 8 bit with the scaling you want, and save it as PNG"
        )
    if label and palette:
        raise DataError(
            f"{path} is a palette PNG; expected the class in the grey value or in the red channel "
            "of RGB(A). Save the indices as grey: Image.fromarray(numpy.array(Image.open(path)))"
        )
    return height, width


def decode_image(path: Path) -> Pixels:
    """A modality's image as ``[3, H, W]`` uint8: alpha dropped, grey replicated.

    Raises:
        DataError: the file is missing, damaged, or of a format that ``check_header`` refuses.
    """
    return _channels_first(_decode(path, label=False))


def decode_label(path: Path, spec: DatasetSpec) -> Pixels:
    """A label image as ``[H, W]`` uint8 train ids, ``spec.ignore_index`` where none.

    Raises:
        DataError: as for images, or a raw value that the spec's table does not map.
    """
    raw = np.ascontiguousarray(_decode(path, label=True)[:, :, 0])
    illegal, train_ids = label_tables(spec)
    present = np.bincount(raw.ravel(), minlength=256)
    if present[illegal].any():
        strange = np.flatnonzero(present * illegal)
        raise bad_label(path, spec, int(strange[0]), int(present[strange].sum()))
    return train_ids[raw]


@lru_cache(maxsize=8)
def label_tables(spec: DatasetSpec) -> tuple[NDArray[np.bool_], Pixels]:
    """Per raw value ``[256]``: whether it must not occur, and its train id in uint8."""
    table = np.array(spec.label.table)
    illegal = table == ILLEGAL
    return illegal, np.where(illegal, spec.ignore_index, table).astype(np.uint8)


def bad_label(path: Path, spec: DatasetSpec, value: int, pixels: int) -> DataError:
    """The error for ``pixels`` pixels without a train id, the lowest of raw value ``value``."""
    legal = [raw for raw, train_id in enumerate(spec.label.table) if train_id != ILLEGAL]
    return DataError(
        f"{path}: label value {value} is not one of {spec.name}'s {len(legal)} raw values "
        f"({_ranges(legal)}, for {spec.num_classes} classes); {pixels} pixels are affected. "
        "Usual causes: labels of another data set or another id convention, ids off by one, a "
        "colour-coded or resampled label image, the wrong --data.dataset"
    )


def _decode(path: Path, *, label: bool) -> Pixels:
    """Pixels ``[H, W, 3]`` in RGB order."""
    data = read_bytes(path)
    check_header(data, path, label=label)
    try:
        with Image.open(io.BytesIO(data)) as image:
            # convert drops alpha without compositing and copies grey into all channels
            return np.array(image.convert("RGB"))
    except _DAMAGE as error:
        raise _damaged(path, len(data), error) from error


def _channels_first(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _damaged(path: Path, size: int, error: BaseException) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"{path} is damaged or no image ({size} bytes; {reason}); fetch this file again"
    )


def _ranges(values: list[int]) -> str:
    """``[0, 1, 2, 255]`` as ``0-2, 255``."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    return ", ".join("-".join(map(str, run)) for run in runs)
