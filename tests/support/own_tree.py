"""A data set of somebody's own: a camera, a 16-bit thermal sensor, five classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.dataset_trees import save

CLASSES = ("road", "roof", "tree", "water", "car")
COLOURS = ((128, 64, 128), (180, 60, 60), (107, 142, 35), (40, 80, 200), (0, 0, 142))
VOID = (0, 0, 0)
SIZES = ((333, 500), (333, 500), (320, 416))


def scene(seed: int, height: int, width: int) -> np.ndarray:
    """Labels ``[H, W]``: stripes of the five classes and a corner of 255."""
    draws = np.random.default_rng(seed)
    edges = np.sort(draws.integers(1, width, 4))
    label = np.zeros((height, width), np.uint8)
    label[:] = np.searchsorted(edges, np.arange(width), side="right")
    label[height // 2 :] = np.roll(label[height // 2 :], width // 3, axis=1)
    label[: height // 8, : width // 8] = 255
    return label


def write_own(
    root: Path,
    coding: str = "ids",
    counts: Mapping[str, int] | None = None,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    splits: str = "folders",
) -> Path:
    """Files ``rgb/train/000.png``, ``thermal/...`` and ``labels/...``; by split, or all in one.

    Args:
        root: folder to write into.
        coding: of the labels: ids, indices or colours.
        counts: samples of each split.
        sizes: height and width, taken in turn.
        splits: folders, lists or none.
    """
    number = 0
    for split, count in (counts or {"train": 6, "val": 3}).items():
        names = []
        for _ in range(count):
            height, width = sizes[number % len(sizes)]
            label = scene(number, height, width)
            place = f"{split}/{number:03d}" if splits == "folders" else f"{number:03d}"
            draws = np.random.default_rng(number)
            seen = np.array([*COLOURS, *[VOID] * 251], np.int64)[label]
            noise = draws.integers(-9, 10, seen.shape)
            save(root / "rgb" / f"{place}.png", (seen + noise).clip(0, 255))
            heat = (
                29_000
                + 400 * np.minimum(label, 5).astype(np.int64)
                + draws.integers(0, 99, label.shape)
            )
            save(root / "thermal" / f"{place}.png", heat.astype(np.uint16))
            save_label(root / "labels" / f"{place}.png", label, coding)
            names.append(f"{number:03d}")
            number += 1
        if splits == "lists":
            (root / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return root


def save_label(path: Path, label: np.ndarray, coding: str) -> None:
    """A label map in one of the three codings."""
    colours = np.array([*COLOURS, *[VOID] * 251], np.uint8)
    if coding == "colours":
        save(path, colours[label])
    elif coding == "indices":
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(label, "P")
        image.putpalette(colours.tobytes())
        image.save(path)
    else:
        save(path, label)
