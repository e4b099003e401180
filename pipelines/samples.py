"""One sample from its files to pixels of the training size, in NumPy on one thread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .decode import Pixels, decode_image, decode_label
from .errors import DataError
from .files import SplitFiles
from .geometry import Axis, Geometry


@dataclass(frozen=True)
class Sample:
    """A decoded sample, grouped by how it changes size.

    Attributes:
        linear: ``[3 Mb, H, W]`` uint8, the Mb bilinear modalities.
        nearest: ``[3 Mn + 1, H, W]`` uint8, the Mn nearest modalities and the label map.
    """

    linear: Pixels
    nearest: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.nearest.shape[1], self.nearest.shape[2]


class SampleReader:
    """Reads samples of a split and renders them; keeps the decoded ones if ``cache``.

    Modalities of equal interpolation are stacked, so that each sample needs two resizes, not M + 1.
    """

    def __init__(self, files: SplitFiles, *, cache: bool = False) -> None:
        self.files = files
        self._cache: dict[int, Sample] | None = {} if cache else None
        rules = [m.interpolation for m in files.modalities]
        self._linear = [m for m, rule in enumerate(rules) if rule == "bilinear"]
        self._nearest = [m for m, rule in enumerate(rules) if rule == "nearest"]

    def read(self, index: int) -> Sample:
        """Decode sample ``index``; its modalities have the size of its label.

        Raises:
            DataError: a file is missing, damaged, or of the wrong size or values.
        """
        if self._cache is None:
            return self._decode(index)
        sample = self._cache.get(index)
        if sample is None:
            sample = self._cache[index] = self._decode(index)
        return sample

    def render(self, sample: Sample, geometry: Geometry, images: Pixels, labels: Pixels) -> None:
        """Write the modalities to ``images [M, 3, h, w]`` and the label map to ``labels [h, w]``.

        Both are filled completely: padding is 0 in images and the ignore index in labels.
        """
        height, width = geometry.rows.length, geometry.cols.length
        if (height, width) != labels.shape:
            images.fill(0)
            labels.fill(self.files.spec.ignore_index)
        nearest = resize_nearest(sample.nearest, geometry.rows, geometry.cols)
        for position, modality in enumerate(self._nearest):
            images[modality, :, :height, :width] = nearest[3 * position : 3 * position + 3]
        labels[:height, :width] = nearest[-1]
        if self._linear:
            linear = resize_bilinear(sample.linear, geometry.rows, geometry.cols)
            for position, modality in enumerate(self._linear):
                images[modality, :, :height, :width] = linear[3 * position : 3 * position + 3]

    def _decode(self, index: int) -> Sample:
        files = self.files
        label = decode_label(files.path(index, files.spec.label), files.spec)
        images = [
            self._decode_modality(index, m, label.shape) for m in range(len(files.modalities))
        ]
        height, width = label.shape
        empty = np.empty((0, height, width), np.uint8)
        return Sample(
            linear=np.concatenate([empty, *(images[m] for m in self._linear)]),
            nearest=np.concatenate([*(images[m] for m in self._nearest), label[None]]),
        )

    def _decode_modality(self, index: int, position: int, size: tuple[int, ...]) -> Pixels:
        modality = self.files.modalities[position]
        path = self.files.path(index, modality)
        image = decode_image(path)
        height, width = image.shape[1:]
        if (height, width) == size:
            return image
        if not modality.any_size:
            raise wrong_size(self.files, index, position, (height, width), size)
        rows = Axis(height, scaled=size[0], offset=0, length=size[0], out=size[0])
        cols = Axis(width, scaled=size[1], offset=0, length=size[1], out=size[1])
        return resize_nearest(image, rows, cols)


def wrong_size(
    files: SplitFiles, index: int, position: int, size: tuple[int, int], expected: tuple[int, ...]
) -> DataError:
    """The error for a modality whose (height, width) differs from the label's."""
    modality = files.modalities[position]
    return DataError(
        f"{files.path(index, modality)} is {size[1]} x {size[0]} pixels, its label is "
        f"{expected[1]} x {expected[0]}; all files of a sample must be registered and of one size. "
        "Check that the file belongs to this sample, or resize it"
    )


def resize_nearest(source: Pixels, rows: Axis, cols: Axis) -> Pixels:
    """Window of ``source [C, H, W]`` rescaled by legacy nearest: ``[C, h, w]`` uint8."""
    return source.take(rows.nearest(), axis=1).take(cols.nearest(), axis=2)


def resize_bilinear(source: Pixels, rows: Axis, cols: Axis) -> Pixels:
    """Window of ``source [C, H, W]`` rescaled bilinearly, rounded to uint8 ``[C, h, w]``.

    Half-pixel centres, no antialias; equal to ``interpolate(..., align_corners=False)`` of the
    whole image followed by flip and crop, up to one level where float32 rounding decides.
    """
    if rows.scaled == rows.source and cols.scaled == cols.source:
        return resize_nearest(source, rows, cols)
    top, bottom, weight = rows.bilinear()
    left, right, across = cols.bilinear()
    # only the columns that are needed take part in the vertical pass
    first, last = min(left.min(), right.min()), max(left.max(), right.max()) + 1
    strip = source[:, :, first:last]
    upper = strip.take(top, axis=1).astype(np.float32)
    lower = strip.take(bottom, axis=1).astype(np.float32)
    lower -= upper
    lower *= weight[:, None]
    upper += lower
    start = upper.take(left - first, axis=2)
    end = upper.take(right - first, axis=2)
    end -= start
    end *= across
    start += end
    rounded: Pixels = np.rint(start, out=start).astype(np.uint8)
    return rounded
