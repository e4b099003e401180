"""A tiny DELIVER tree in the published formats, with random content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 64
SCENES = {
    "train": [
        ("cloud", "MAP_1_point2"),
        ("rain", "MAP_1_point2_eventlowres"),
        ("night", "MAP_2_point7"),
        ("sun", "MAP_2_point7_overexposure"),
    ],
    "val": [("fog", "MAP_3_point1"), ("cloud", "MAP_3_point1_eventlowres")],
}


def write_sample(
    root: Path, condition: str, split: str, scene: str, frame: str, side: int = SIDE
) -> None:
    """Five files as the real set has them: formats, channels and value ranges."""
    key = [ord(c) for c in f"{condition}{split}{scene}{frame}"]
    g = np.random.default_rng(key)

    def save(folder: str, tag: str, pixels: np.ndarray) -> None:
        path = root / folder / condition / split / scene / f"{frame}_{tag}_front.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    ramp = np.add.outer(np.arange(side), np.arange(side)) * 255 // (2 * side)
    img = (ramp[..., None] * [1.0, 0.7, 0.3] + g.integers(0, 20, (side, side, 3))).clip(0, 255)
    if "overexposure" in scene:  # some scenes carry an alpha channel
        img = np.concatenate([img, np.full((side, side, 1), 255)], axis=-1)
    save("img", "rgb", img)
    save("hha", "depth", np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1))
    low = side * 512 // 1042 if "eventlowres" in scene else side
    sign = g.integers(0, 14, (low, low))  # about 7 % of the pixels per polarity
    event = np.stack([sign == 1, np.zeros_like(sign), sign == 2], axis=-1) * 255
    save("event", "event", event)
    hits = (g.random((side, side)) < 0.05) * g.integers(1, 101, (side, side))
    save("lidar", "lidar", np.repeat(hits[..., None], 3, axis=-1))
    label = g.integers(0, 26, (side, side, 4))
    label[0, :4, 0] = 255
    label[..., 1:3] = g.integers(0, 256, (side, side, 2))
    label[..., 3] = 255
    save("semantic", "semantic", label)


@pytest.fixture(scope="session")
def _written_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("deliver")
    for split, scenes in SCENES.items():
        for condition, scene in scenes:
            for frame in range(4 if split == "train" else 3):
                write_sample(root, condition, split, scene, f"{frame:06d}")
    return root


@pytest.fixture
def deliver_tree(_written_once: Path, tmp_path: Path) -> Path:
    """16 training and 6 validation samples of 64 x 64 pixels; the root is named like a filter.

    Each test has its own copy and may spoil it.
    """
    return Path(shutil.copytree(_written_once, tmp_path / "rain_sun_demo"))


@pytest.fixture
def add_sample() -> Callable[..., None]:
    """``write_sample``: adds one sample of a given side to a tree."""
    return write_sample
