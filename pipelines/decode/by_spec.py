"""Files of a sample to arrays, under the rules that its spec declares."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..datasets.spec import ILLEGAL, DatasetSpec, ModalitySpec
from ..errors import DataError
from ..tools.reading import read_bytes
from ..transform.geometry import Axis
from .arrays import read_array
from .images import Pixels, decode_ids, decode_image, refuse_lossy
from .painted import decode_colours, painted_ids

Array = NDArray[Any]
"""uint8 or uint16 codes, or float32 values."""


def decode_modality(paths: Sequence[Path], spec: DatasetSpec, modality: ModalitySpec) -> Array:
    """A modality's image as ``[3, H, W]`` of ``modality.dtype``, cut and resized as ``spec`` says.

    It may be read-only, and the channels of a pixel may be neighbours in memory.

    Raises:
        DataError: a file is missing, damaged, or of a format, shape or value that is not declared.
    """
    return to_codes(read_pixels(paths, spec, modality), spec, modality, paths[0])


def read_pixels(paths: Sequence[Path], spec: DatasetSpec, modality: ModalitySpec) -> Array:
    """A modality's files as pixels ``[H, W, C]``: 8- or 16-bit RGB, or the channels of arrays.

    Raises:
        DataError: a file is missing, damaged, or of a format or depth that is not declared.
    """
    if modality.decoder == "image":
        return decode_image(read_bytes(paths[0]), paths[0], bits=modality.bits)
    if modality.decoder == "array":
        return _stacked(paths, modality)
    raise DataError(
        f"{modality.name} of {spec.name} is raw sensor data ({paths[0]}), which cannot be "
        "loaded as an image; run python -m fastseg.data prepare, then load the prepared set"
    )


def to_codes(pixels: Array, spec: DatasetSpec, modality: ModalitySpec, where: Path | str) -> Array:
    """Pixels of ``read_pixels`` as ``[3, h, w]`` of ``modality.dtype``, cut and resized.

    Args:
        pixels: ``[H, W, C]``.
        spec: says which columns are cut off, and whether the rest is resized.
        modality: says which channels are used, and how.
        where: their file, or another name for messages.

    Raises:
        DataError: nothing is left of them.
    """
    if modality.high_byte:
        pixels = (pixels >> 8).astype(np.uint8)
    check_width(where, pixels.shape[1], spec)
    pixels = pixels[:, spec.skip_columns :]
    if spec.resize is not None:
        height, width = spec.resize
        with Image.fromarray(pixels) as image:
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    if modality.channels != (0, 1, 2) or pixels.shape[2] != 3:
        pixels = pixels.take(modality.channels, axis=2)
    pixels = pixels.transpose(2, 0, 1)
    return _stretched(pixels) if modality.stretch else pixels


def decode_label(path: Path, spec: DatasetSpec, mask: Path | None = None) -> Pixels:
    """A label image as ``[H, W]`` uint8 train ids, ``spec.ignore_index`` where none.

    Raises:
        DataError: as for images, painted in colours, a JPEG, or a raw value that the spec's table
            does not map.
    """
    data = read_bytes(path)
    if spec.label.coding == "colours":
        pixels = decode_colours(data, path)
        check_width(path, pixels.shape[1], spec)
        label = painted_ids(pixels[:, spec.skip_columns :], path, spec)
    else:
        indices = spec.label.coding == "indices"
        raw = decode_ids(data, path, red_alone=spec.label.red_alone, palette=indices)
        check_width(path, raw.shape[1], spec)
        label = _translated(np.ascontiguousarray(raw[:, spec.skip_columns :]), path, spec)
    if mask is not None:
        data = read_bytes(mask)
        refuse_lossy(data, mask)
        hidden = decode_image(data, mask)[:, spec.skip_columns :, 0] > 0
        if hidden.shape != label.shape:
            raise wrong_size(mask, hidden.shape, label.shape)
        label[hidden] = spec.ignore_index
    if spec.resize is not None:
        rows, cols = (resampled(*pair) for pair in zip(label.shape, spec.resize, strict=True))
        label = label.take(rows.nearest(), axis=0).take(cols.nearest(), axis=1)
    return label


def _translated(raw: Pixels, path: Path, spec: DatasetSpec) -> Pixels:
    """Train ids of raw values, by the table of the spec."""
    illegal, train_ids = label_tables(spec)
    # translate looks values up several times faster than an index does
    if b"\1" in raw.tobytes().translate(illegal.tobytes()):
        present = np.bincount(raw.ravel(), minlength=256)
        strange = np.flatnonzero(present * illegal)
        raise bad_label(path, spec, int(strange[0]), int(present[strange].sum()))
    translated = bytearray(raw.tobytes().translate(train_ids.tobytes()))
    label: Pixels = np.frombuffer(translated, np.uint8).reshape(raw.shape)
    return label


def resampled(source: int, target: int) -> Axis:
    """One axis resized as a whole."""
    return Axis(source, scaled=target, offset=0, length=target, out=target)


def check_width(path: Path | str, width: int, spec: DatasetSpec) -> None:
    """Refuse an image of which nothing is left after ``spec.skip_columns``.

    Raises:
        DataError: it is not wide enough.
    """
    if width <= spec.skip_columns:
        raise DataError(
            f"{path} is {width} pixels wide, but {spec.name} leaves out the first "
            f"{spec.skip_columns} columns; use the images in their published size",
            "size",
        )


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
        "colour-coded or resampled label image, the wrong --data.dataset",
        "label",
    )


def wrong_size(path: Path, size: tuple[int, ...], expected: tuple[int, ...]) -> DataError:
    """The error for a file whose (height, width) differs from the label's."""
    return DataError(
        f"{path} is {size[1]} x {size[0]} pixels, its label is {expected[1]} x {expected[0]}; all "
        "files of a sample must be registered and of one size. Check that the file belongs to "
        "this sample, or resize it",
        "size",
    )


def _stacked(paths: Sequence[Path], modality: ModalitySpec) -> NDArray[np.float32]:
    """The channels of all arrays ``[H, W, C]``, after checking that the declared ones exist."""
    arrays = [read_array(read_bytes(path), path) for path in paths]
    for path, array in zip(paths[1:], arrays[1:], strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            raise DataError(
                f"{path} is {array.shape[1]} x {array.shape[0]}, but {paths[0]} is "
                f"{arrays[0].shape[1]} x {arrays[0].shape[0]}; both belong to one image. Restore "
                "the two files of this sample",
                "size",
            )
    stacked = np.concatenate(arrays, axis=2)
    if max(modality.channels) >= stacked.shape[2]:
        raise DataError(
            f"{paths[0]}: {modality.name} has {stacked.shape[2]} channels; expected at least "
            f"{max(modality.channels) + 1}. Check that the file belongs to this modality",
            "value",
        )
    return stacked


def _stretched(pixels: Array) -> NDArray[np.float32]:
    """255 (x - min) / (max - min) over all pixels and channels; 0 for a constant image."""
    values = pixels.astype(np.float32)
    low, high = values.min(), values.max()
    span = high - low
    result: NDArray[np.float32] = (values - low) / (span if span else 1) * np.float32(255)
    return result


def _ranges(values: list[int]) -> str:
    """``[0, 1, 2, 255]`` as ``0-2, 255``."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    return ", ".join("-".join(map(str, run)) for run in runs)
