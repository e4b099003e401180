"""One sample from its files to pixels of the training size, in NumPy on one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .decode import Array, decode_label, decode_modality, resampled, wrong_size
from .files import SplitFiles
from .geometry import Axis, Geometry
from .images import Pixels
from .spec import Interpolation, ModalitySpec


@dataclass(frozen=True)
class Group:
    """Modalities that are stacked because they change size by one rule and share a type.

    Attributes:
        interpolation: the rule.
        dtype: what their codes are held in.
        members: their positions among the modalities.
    """

    interpolation: Interpolation
    dtype: np.dtype[np.generic]
    members: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A decoded sample.

    Attributes:
        stacks: per group ``[3 Mg, H, W]``, its Mg modalities one after the other; the first stack
            has one more channel, the label map.
    """

    stacks: tuple[Array, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.stacks[0].shape[1], self.stacks[0].shape[2]


class SampleReader:
    """Reads samples of a split and renders them; keeps the decoded ones if ``cache``.

    Modalities of equal interpolation and type are stacked, so that a sample of 8-bit images needs
    two resizes, not M + 1.
    """

    def __init__(self, files: SplitFiles, *, cache: bool = False) -> None:
        self.files = files
        self._cache: dict[int, Sample] | None = {} if cache else None
        self._groups = group_modalities(files.modalities)

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

    def render(
        self, sample: Sample, geometry: Geometry, images: Sequence[Array], labels: Pixels
    ) -> None:
        """Write each modality to its ``[3, h, w]`` and the label map to ``labels [h, w]``.

        All are filled completely: padding is the empty code in images and the ignore index in
        labels.
        """
        height, width = geometry.rows.length, geometry.cols.length
        if (height, width) != labels.shape:
            for modality, image in zip(self.files.modalities, images, strict=True):
                image.fill(modality.empty)
            labels.fill(self.files.spec.ignore_index)
        for group, stack in zip(self._groups, sample.stacks, strict=True):
            resize = resize_nearest if group.interpolation == "nearest" else resize_bilinear
            resized = resize(stack, geometry.rows, geometry.cols)
            for position, member in enumerate(group.members):
                channels = slice(3 * position, 3 * position + 3)
                images[member][:, :height, :width] = resized[channels]
            if stack is sample.stacks[0]:
                labels[:height, :width] = resized[-1]

    def _decode(self, index: int) -> Sample:
        label = read_label(self.files, index)
        images = [read_modality(self.files, index, m, label.shape) for m in self.files.modalities]
        stacks: list[Array] = []
        for group in self._groups:
            parts = [images[member] for member in group.members]
            stacks.append(np.concatenate(parts if stacks else [*parts, label[None]]))
        return Sample(tuple(stacks))


def group_modalities(modalities: Sequence[ModalitySpec]) -> tuple[Group, ...]:
    """Which modalities share a stack; the first group is that of the label, perhaps empty."""
    members: dict[tuple[Interpolation, np.dtype[np.generic]], list[int]] = {
        ("nearest", np.dtype(np.uint8)): []
    }
    for position, modality in enumerate(modalities):
        members.setdefault((modality.interpolation, modality.dtype), []).append(position)
    return tuple(Group(*key, tuple(positions)) for key, positions in members.items())


def read_label(files: SplitFiles, index: int) -> Pixels:
    """The label map of a sample, ``[H, W]`` uint8; see ``decode_label``."""
    label = files.spec.label
    mask = None if label.mask is None else files.path(index, label.mask)
    return decode_label(files.path(index, label.file), files.spec, mask)


def read_modality(
    files: SplitFiles, index: int, modality: ModalitySpec, size: tuple[int, ...]
) -> Array:
    """A modality of a sample, ``[3, H, W]`` of the label's ``size``; all empty if it is absent.

    Raises:
        DataError: as ``decode_modality``, or the file is of another size.
    """
    if files.is_absent(index, modality):
        return np.full((3, *size), modality.empty, modality.dtype)
    paths = files.paths(index, modality.files)
    image = decode_modality(paths, files.spec, modality)
    height, width = image.shape[1:]
    if (height, width) == size:
        return image
    if not modality.any_size:
        raise wrong_size(paths[0], (height, width), size)
    return resize_nearest(image, resampled(height, size[0]), resampled(width, size[1]))


def resize_nearest(source: Array, rows: Axis, cols: Axis) -> Array:
    """Window of ``source [C, H, W]`` rescaled by legacy nearest: ``[C, h, w]``."""
    window: Array = source.take(rows.nearest(), axis=1).take(cols.nearest(), axis=2)
    return window


def resize_bilinear(source: Array, rows: Axis, cols: Axis) -> Array:
    """Window of ``source [C, H, W]`` rescaled bilinearly in float32: ``[C, h, w]``.

    Half-pixel centres, no antialias; equal to ``interpolate(..., align_corners=False)`` of the
    whole image followed by flip and crop, up to one level where float32 rounding decides. Integer
    types are rounded to the nearest code.
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
    if source.dtype.kind == "u":
        np.rint(start, out=start)
    window: Array = start.astype(source.dtype, copy=False)
    return window
