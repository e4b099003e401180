"""Predictions as pictures: in the colours of the data set, and over what a sensor saw."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastseg.pipelines import DatasetSpec, ModalitySpec
from fastseg.pipelines.decode.by_spec import Array, to_codes
from fastseg.pipelines.inspection.display import picture, to_values

Picture = NDArray[np.uint8]
"""``[H, W, 3]``."""


def grey_png(labels: NDArray[np.uint8]) -> bytes:
    """Train ids ``[H, W]`` as an 8-bit grey PNG that holds them exactly."""
    return _png(Image.fromarray(labels))


def palette_png(labels: NDArray[np.uint8], spec: DatasetSpec) -> bytes:
    """Train ids ``[H, W]`` as a PNG of indexed colours, those of the data set; others are black."""
    image = Image.fromarray(labels)  # eight-bit grey, made a palette image by the next line
    image.putpalette(_colours(spec).tobytes())
    return _png(image)


def overlay_png(labels: NDArray[np.uint8], seen: Picture, spec: DatasetSpec, alpha: float) -> bytes:
    """``alpha`` of the colour of each pixel's class and the rest of what was seen there.

    Pixels without a class show what was seen alone.
    """
    weight = np.where(labels < spec.num_classes, np.float32(alpha), np.float32(0))[:, :, None]
    mixed = seen + weight * (_colours(spec)[labels] - seen.astype(np.float32))
    # the noise of a camera hardly compresses: speed counts
    return _png(Image.fromarray(np.rint(mixed).astype(np.uint8)), level=1)


def seen_by(
    pixels: Mapping[ModalitySpec, Array], spec: DatasetSpec, size: tuple[int, int]
) -> Picture:
    """What the first camera of a sample saw, or where it has none its first sensor.

    Args:
        pixels: ``[H, W, C]`` of the sensors that are there, in the order of the run.
        spec: of their data set.
        size: height and width of the picture.
    """
    cameras = [modality for modality in pixels if modality.sensor == "camera"]
    shown = (cameras or list(pixels))[0]
    whole = replace(spec, skip_columns=0, resize=None)
    image = picture(shown, to_values(shown, to_codes(pixels[shown], whole, shown, shown.name)))
    if image.shape[:2] != size:
        wanted = (size[1], size[0])
        image = np.asarray(Image.fromarray(image).resize(wanted, Image.Resampling.BILINEAR))
    return image


def _colours(spec: DatasetSpec) -> NDArray[np.uint8]:
    """``[256, 3]``."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: spec.num_classes] = spec.palette
    return colours


def _png(image: Image.Image, level: int = 6) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=level)
    return data.getvalue()
