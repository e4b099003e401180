"""One sample from its files to pixels of the training size, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..datasets.spec import ModalitySpec
from ..datasets.split_files import SplitFiles
from ..decode.by_spec import Array, decode_label, decode_modality, resampled, wrong_size
from ..decode.headers import label_size
from ..decode.images import Pixels
from ..transform.geometry import Geometry
from ..transform.photometric import Augmenter, is_photo
from ..transform.resample import Resampler, compiled, resize


@dataclass(frozen=True)
class Sample:
    """A decoded sample.

    Attributes:
        images: image of each modality, ``[3, H, W]`` in its dtype.
        label: ``[H, W]`` uint8 train ids.
    """

    images: tuple[Array, ...]
    label: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.label.shape[0], self.label.shape[1]


class Store(Protocol):
    """Source of the decoded images and labels of a split."""

    def image(self, index: int, modality: ModalitySpec) -> Array:
        """A modality of a sample, ``[3, H, W]`` in the size of its file; not if it is absent."""
        ...

    def label(self, index: int) -> Pixels:
        """The label map of a sample, ``[H, W]`` uint8."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the label map of a sample, without decoding it."""
        ...


class FileStore:
    """Decodes the files of the data set."""

    def __init__(self, files: SplitFiles) -> None:
        self._files = files

    def image(self, index: int, modality: ModalitySpec) -> Array:
        """See ``Store`` and ``decode_modality``."""
        paths = self._files.paths(index, modality.files)
        return decode_modality(paths, self._files.spec, modality)

    def label(self, index: int) -> Pixels:
        """See ``Store`` and ``decode_label``."""
        return read_label(self._files, index)

    def size(self, index: int) -> tuple[int, int]:
        """See ``Store`` and ``label_size``."""
        return label_size(self._files, index)


class SampleReader:
    """Reads samples of a split; keeps the decoded ones if ``cache``."""

    def __init__(
        self, files: SplitFiles, store: Store | None = None, *, cache: bool = False
    ) -> None:
        self.files = files
        self.store: Store = FileStore(files) if store is None else store
        self._cache: dict[int, Sample] | None = {} if cache else None

    def read(self, index: int, unused: Callable[[ModalitySpec], bool] | None = None) -> Sample:
        """Sample ``index``; its modalities have the size of its label.

        Args:
            index: number of the sample.
            unused: true for a modality nobody will look at: its files stay closed and it is blank,
                unless the sample is to be kept.

        Raises:
            DataError: a file is missing, damaged, or of the wrong size or values.
        """
        if self._cache is None:
            return self._read(index, unused)
        sample = self._cache.get(index)
        if sample is None:
            sample = self._cache[index] = self._read(index)
        return sample

    def image(self, index: int, modality: ModalitySpec, size: tuple[int, ...]) -> Array:
        """A modality of a sample, ``[3, H, W]`` of the label's ``size``; all empty if it is absent.

        Raises:
            DataError: as ``decode_modality``, or the file is of another size.
        """
        if self.files.is_absent(index, modality):
            return blank(modality, size)
        image = self.store.image(index, modality)
        height, width = image.shape[1:]
        if (height, width) == size:
            return image
        if not modality.any_size:
            raise wrong_size(self.files.path(index, modality.files[0]), (height, width), size)
        whole = Geometry(resampled(height, size[0]), resampled(width, size[1]))
        return resize(image, whole, "nearest")

    def _read(self, index: int, unused: Callable[[ModalitySpec], bool] | None = None) -> Sample:
        label = self.store.label(index)
        images = [
            blank(modality, label.shape)
            if unused is not None and unused(modality)
            else self.image(index, modality, label.shape)
            for modality in self.files.modalities
        ]
        return Sample(tuple(images), label)


def blank(modality: ModalitySpec, size: tuple[int, ...]) -> Array:
    """An image ``[3, H, W]`` without content."""
    return np.full((3, *size), modality.empty, modality.dtype)


def read_label(files: SplitFiles, index: int) -> Pixels:
    """The label map of a sample, ``[H, W]`` uint8; see ``decode_label``."""
    label = files.spec.label
    mask = None if label.mask is None else files.path(index, label.mask)
    return decode_label(files.path(index, label.file), files.spec, mask)


def render(
    files: SplitFiles,
    sample: Sample,
    geometry: Geometry,
    augment: Augmenter,
    images: Sequence[Array],
    labels: Pixels,
) -> None:
    """Write each modality to its ``[3, h, w]`` and the label map to ``labels [h, w]``.

    All are filled completely: padding is the empty code in images and the ignore index in labels.
    """
    height, width = geometry.rows.length, geometry.cols.length
    resample = Resampler(geometry, compiled())
    for modality, source, image in zip(files.modalities, sample.images, images, strict=True):
        camera = is_photo(modality)
        image[:, height:] = modality.empty
        image[:, :height, width:] = modality.empty
        source = augment.before(source) if camera else source
        resample(source, modality.interpolation, image[:, :height, :width])
        if camera:
            augment.after(image)
    labels[height:] = files.spec.ignore_index
    labels[:height, width:] = files.spec.ignore_index
    resample(sample.label[None], "nearest", labels[None, :height, :width])
