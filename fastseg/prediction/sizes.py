"""Images of any size to those of the network: one size per sample, then multiples of 32."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fastseg.pipelines import DataError, ModalitySpec
from fastseg.pipelines.decode.by_spec import Array, resampled
from fastseg.pipelines.decode.headers import image_size
from fastseg.pipelines.transform.geometry import Geometry, eval_geometry, padded_geometry
from fastseg.pipelines.transform.resample import Resampler, compiled, resize

Fit = Literal["resize", "pad"]
Images = Mapping[ModalitySpec, Array]
"""Codes ``[3, h, w]`` of the sensors of one sample, in the order of the run."""


def reference(images: Images, resize_to: str | None, names: Mapping[str, str]) -> ModalitySpec:
    """The sensor whose size is that of the sample.

    It is the one called ``resize_to``, if the sample has it. Else all sensors have one size but
    those that a data set stores at any, such as DELIVER's events, and the first one counts.

    Args:
        images: of one sample.
        resize_to: name of a sensor, or None.
        names: what a message calls a sensor, by its name: its file, for instance.

    Raises:
        DataError: two sizes differ.
    """
    for modality in images:
        if modality.name == resize_to:
            return modality
    first, *others = [m for m in images if not m.any_size] or list(images)[:1]
    for other in others:
        if images[other].shape != images[first].shape:
            sizes = [
                f"{names[m.name]} is {images[m].shape[2]} x {images[m].shape[1]} pixels"
                for m in (first, other)
            ]
            raise DataError(
                f"{sizes[0]}, {sizes[1]}; the sensors of a sample must be registered and of one "
                f"size. Resize one of them, or bring the others to the size of one, such as "
                f"--resize-to {first.name}",
                "size",
            )
    return first


def of_one_size(images: Images, height: int, width: int) -> dict[ModalitySpec, Array]:
    """The images at one size, by the rule of each sensor."""
    result = {}
    for modality, image in images.items():
        if image.shape[1:] != (height, width):
            whole = Geometry(resampled(image.shape[1], height), resampled(image.shape[2], width))
            # as the loaders do where another size is allowed
            rule = "nearest" if modality.any_size else modality.interpolation
            image = resize(image, whole, rule)
        result[modality] = image
    return result


def size_by_others(
    there: Collection[ModalitySpec],
    unused: Mapping[str, tuple[Path, ...]],
    modalities: Sequence[ModalitySpec],
) -> tuple[int, int] | None:
    """Height and width of a sample whose sensors may have any, by those that are left out.

    So DELIVER's events alone give a label map of the size of the other images and the labels.

    Args:
        there: sensors that are used.
        unused: files of those that are left out.
        modalities: sensors of the network.

    Returns:
        None where the sensors that are used have a size of their own, or no header says one.
    """
    if not all(modality.any_size for modality in there):
        return None
    for modality in modalities:
        if modality.name in unused and modality.decoder == "image" and not modality.any_size:
            try:
                return image_size(unused[modality.name][0], bits=modality.bits)
            except DataError:
                continue
    return None


def geometry_of(height: int, width: int, fit: Fit, short: int) -> Geometry:
    """How a sample of this size comes to the network; ``short`` is the short side of ``resize``."""
    if fit == "pad":
        return padded_geometry(height, width)
    return eval_geometry(height, width, short)


def fitted(image: Array, modality: ModalitySpec, geometry: Geometry) -> Array:
    """``[3, h, w]`` as the network takes it, padded with the code of no measurement."""
    rows, cols = geometry.rows, geometry.cols
    result: Array = np.full((3, rows.out, cols.out), modality.empty, image.dtype)
    inside = result[:, : rows.length, : cols.length]
    Resampler(geometry, compiled())(image, modality.interpolation, inside)
    return result
