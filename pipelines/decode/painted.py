"""Labels that are painted in colours, to train ids."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets.spec import ILLEGAL, DatasetSpec
from ..errors import DataError
from .images import Pixels, check_header, decode_image

_NEVER = np.iinfo(np.int32).max


def decode_colours(data: bytes, path: Path) -> Pixels:
    """The colours ``[H, W, 3]`` of an 8-bit label image; those of the palette, if it has one.

    Raises:
        DataError: damaged, a JPEG, or of a format that ``check_header`` refuses.
    """
    check_header(data, path, label=True, palette=True)
    return decode_image(data, path)


def painted_ids(pixels: Pixels, path: Path, spec: DatasetSpec) -> Pixels:
    """Train ids ``[H, W]`` of colours ``[H, W, 3]``.

    Raises:
        DataError: a colour stands for nothing, and the spec does not allow that.
    """
    colours = packed(pixels)
    known, train_ids = _tables(spec)
    place = np.searchsorted(known, colours)
    found = known[place] == colours
    label: Pixels = train_ids[place]
    if found.all():
        return label
    if spec.label.other_colours == ILLEGAL:
        raise _unknown(colours, ~found, path, spec)
    return np.where(found, label, np.uint8(spec.label.other_colours))


def packed(pixels: Pixels) -> NDArray[np.int32]:
    """Colours ``[..., 3]`` as numbers ``[...]``: red x 65536 + green x 256 + blue."""
    wide = pixels.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def unpacked(colour: int) -> tuple[int, int, int]:
    """Inverse of ``packed`` for one colour."""
    return colour >> 16, colour >> 8 & 255, colour & 255


@lru_cache(maxsize=8)
def _tables(spec: DatasetSpec) -> tuple[NDArray[np.int32], Pixels]:
    """Colours in order, closed by one that there is not, and their train ids."""
    rows = sorted(
        (red << 16 | green << 8 | blue, i) for (red, green, blue), i in spec.label.colours
    )
    rows.append((_NEVER, spec.ignore_index))
    colours, train_ids = zip(*rows, strict=True)
    return np.array(colours, np.int32), np.array(train_ids, np.uint8)


def _unknown(
    colours: NDArray[np.int32], strange: NDArray[np.bool_], path: Path, spec: DatasetSpec
) -> DataError:
    row, col = np.argwhere(strange)[0]
    colour = unpacked(int(colours[row, col]))
    different = len(np.unique(colours[strange]))
    table = np.array([c for c, _ in spec.label.colours])
    nearest, train_id = spec.label.colours[int(((table - colour) ** 2).sum(axis=1).argmin())]
    name = spec.classes[train_id] if train_id < spec.num_classes else "ignored"
    return DataError(
        f"{path}: colour {list(colour)} at row {row}, column {col} is that of no class of "
        f"{spec.called} (nearest: {list(nearest)}, {name}); {int(strange.sum())} pixels have "
        f"{different} such colours. Give it to a class or to ignored of [label]; where edges are "
        'blurred, make the labels anew or set others = "ignored"',
        "label",
    )
