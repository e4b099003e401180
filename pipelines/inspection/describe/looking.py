"""Headers of many files and pixels of a few: depths, channels, sizes, values, statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...decode import png
from ...decode.arrays import read_array
from ...decode.headers import in_threads
from ...decode.images import DAMAGE, decode_ids, decode_image, opened
from ...decode.painted import packed
from ...errors import DataError
from ...tools.reading import read_bytes, read_ends
from .groups import Group

HEADERS, LABELS = 2000, 400
"""Files of a group whose headers are read, and label files that are decoded, at most."""
MOST_VALUES = 64
"""A label has no more values or colours than this, as far as we guess."""


@dataclass
class Looks:
    """What the files of a group are like.

    Attributes:
        depths: bits per channel, of images.
        palette: true if all looked at are palette PNGs.
        channels: of the stored files; 1 for grey.
        sizes: files per (height, width).
        values: pixels per raw value or packed colour, if these are few; None otherwise.
        coding: how to read these values as labels.
        mean, std: of the codes, per channel.
        colours: colour of each value in the palette of the files, if there is one for all.
        headers: number of files whose headers were read.
        examined: number of files whose pixels were looked at.
        counted: number of files whose values were counted.
    """

    depths: set[int] = field(default_factory=set)
    palette: bool = False
    channels: int = 3
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    values: dict[int, int] | None = None
    coding: str = "ids"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    colours: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    headers: int = 0
    examined: int = 0
    counted: int = 0


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spread."""
    step = max(1, -(-len(items) // most))
    return list(items[::step])


def look_at(root: Path, group: Group, samples: int) -> Looks:
    """Headers of a group's files, and the pixels of some.

    Raises:
        DataError: a file cannot be read.
    """
    paths = [root / path for path in group.files.values()]
    looks = Looks()
    if not paths[0].suffix.lower().startswith(".np"):
        heads = in_threads(_header, spread(paths, HEADERS))
        looks.headers = len(heads)
        looks.depths = {depth for depth, *_ in heads}
        looks.palette = all(colour == png.PALETTE for _, colour, _, _ in heads)
        looks.channels = max(bands for _, _, bands, _ in heads)
        looks.sizes = Counter(size for *_, size in heads)
    few = spread(paths, samples)
    if looks.palette or (looks.depths == {8} and paths[0].suffix.lower() == ".png"):
        looks.values, looks.coding = _values(few, paths, looks)
    sums = in_threads(lambda path: _sums(path, looks), few)
    looks.examined = len(few)
    if not looks.depths:
        looks.channels = min(len(total) for _, total, _, _ in sums)
        looks.sizes = Counter(size for *_, size in sums)
    count = sum(n for n, *_ in sums)
    total = np.sum([t[: looks.channels] for _, t, _, _ in sums], axis=0) / count
    squares = np.sum([s[: looks.channels] for _, _, s, _ in sums], axis=0) / count
    deviation = np.sqrt(np.maximum(squares - total**2, 0))
    looks.mean, looks.std = tuple(total.tolist()), tuple(deviation.tolist())
    return looks


def _header(path: Path) -> tuple[int, int, int, tuple[int, int]]:
    """Depth, PNG colour type (-1 for others), stored channels and size of an image."""
    head, tail = read_ends(path, 1 << 16, 1 << 10)
    for data in (head, None):
        try:
            content = read_bytes(path) if data is None else data + tail
            with opened(content) as image:
                size, bands = (image.height, image.width), len(image.getbands())
            break
        except DAMAGE as error:
            if data is None:
                raise DataError(
                    f"{path} is damaged or no image ({error}); fetch it again, or move it out of "
                    "the folder",
                    "damaged",
                ) from None
    if not head.startswith(png.SIGNATURE):
        return 8, -1, bands, size
    return (8 if head[25] == png.PALETTE else head[24]), head[25], bands, size


def _sums(path: Path, looks: Looks) -> tuple[int, Any, Any, tuple[int, int]]:
    data = read_bytes(path)
    if looks.depths:
        pixels = decode_image(data, path, bits=tuple(sorted(looks.depths & {8, 16})) or (8,))
    else:
        pixels = read_array(data, path)
    flat = pixels.reshape(-1, pixels.shape[2]).astype(np.float64)
    return len(flat), flat.sum(axis=0), (flat**2).sum(axis=0), pixels.shape[:2]


def _values(
    few: Sequence[Path], paths: Sequence[Path], looks: Looks
) -> tuple[dict[int, int] | None, str]:
    """Pixels per value over the files of what may be a label, and its coding."""
    coding = "indices" if looks.palette else "ids"
    if looks.palette:
        looks.colours = _palette(few)
    if coding == "ids" and looks.channels >= 3:
        first = [decode_image(read_bytes(path), path) for path in few[:3]]
        grey = all((p[..., 0] == p[..., 1]).all() and (p[..., 0] == p[..., 2]).all() for p in first)
        coding = "ids" if grey else "colours"
    counts: Counter[int] = Counter()
    for part in (few, spread(paths, LABELS)):
        counts.clear()
        looks.counted = len(part)
        for file in in_threads(lambda path: _count(path, coding), part):
            counts.update(file)
        # photographs are known by the first few
        if len(counts) > MOST_VALUES:
            return None, coding
    return dict(sorted(counts.items())), coding


def _palette(few: Sequence[Path]) -> dict[int, tuple[int, int, int]]:
    """Colour of each index; empty if some files have another palette."""
    found = set()
    for path in few:
        with opened(read_bytes(path)) as image:
            found.add(tuple(image.getpalette("RGB") or ()))
    if len(found) != 1:
        return {}
    flat = found.pop()
    places = range(0, len(flat), 3)
    return {place // 3: (flat[place], flat[place + 1], flat[place + 2]) for place in places}


def _count(path: Path, coding: str) -> dict[int, int]:
    data = read_bytes(path)
    values: NDArray[Any]
    if coding == "colours":
        values = packed(decode_image(data, path))
    else:
        values = decode_ids(data, path, red_alone=False, palette=True)
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
