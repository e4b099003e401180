"""What DALI is fed: per step the bytes of the files, and the regions that the crops read.

Everything that is drawn or depends on an image's size is computed here, in Python, from the same
``Geometry`` that the torch loader uses. Files that DALI cannot decode exactly (arrays, readings for
compatibility, masks) are decoded here by the torch loader's functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import check_width, resampled, wrong_size
from .files import SplitFiles
from .geometry import Geometry
from .images import check_header, read_bytes
from .plan import Plan
from .samples import SampleReader, read_label
from .spec import ModalitySpec

Input = NDArray[Any]
Size = tuple[int, int]


def dali_decodes(files: SplitFiles, modality: ModalitySpec) -> bool:
    """Whether this modality's files go to DALI as they are."""
    return (
        modality.decoder == "image"
        and not modality.high_byte
        and not modality.stretch
        and files.spec.resize is None
        and not any(name == modality.name for name, _ in files.absent)
    )


def dali_decodes_label(files: SplitFiles) -> bool:
    """Whether label files go to DALI as they are."""
    return files.spec.label.mask is None and files.spec.resize is None


class Source:
    """What ``external_source`` calls: iteration to one list of arrays per input.

    Inputs, in order: each modality and the label, as bytes or ``[H, W, C]``; start and end of the
    nearest region; size of the window; size of the output; start and end of the bilinear region, if
    a modality needs it; then start, end and size of the first resize of each modality that may come
    in another size. Regions and sizes are float32 ``[2]`` (rows, columns).
    """

    def __init__(self, plan: Plan, steps: range) -> None:
        self._plan, self._steps = plan, steps
        modalities = plan.files.modalities
        self._reader = SampleReader(plan.files)
        self.encoded = [dali_decodes(plan.files, modality) for modality in modalities]
        self.label_encoded = dali_decodes_label(plan.files)
        self.bilinear = any(modality.interpolation == "bilinear" for modality in modalities)
        self._free = [m for m, modality in enumerate(modalities) if modality.any_size]
        self.num_outputs = len(modalities) + 5 + 2 * self.bilinear + 3 * len(self._free)

    def __call__(self, iteration: int) -> list[list[Input]]:
        """The inputs of one batch.

        Raises:
            StopIteration: all steps are done.
            DataError: a file is missing or of a format or size that cannot be used.
        """
        if iteration >= len(self._steps):
            raise StopIteration
        step = self._steps[iteration]
        _, indices = self._plan.order.at(step)
        files = [self._read(index) for index in indices]
        geometries = self._plan.geometries(step, [sizes[-1] for _, sizes in files])
        samples = [
            [*contents, *self._windows(geometry), *self._first_resizes(sizes)]
            for (contents, sizes), geometry in zip(files, geometries, strict=True)
        ]
        return [list(column) for column in zip(*samples, strict=True)]

    def _read(self, index: int) -> tuple[list[Input], list[Size]]:
        """Content and (height, width) of every modality of a sample, the label last."""
        files = self._plan.files
        label, size = self._read_label(index)
        contents, sizes = [], []
        for modality, encoded in zip(files.modalities, self.encoded, strict=True):
            if encoded:
                content, own = self._read_image(index, modality)
                if own != size and not modality.any_size:
                    raise wrong_size(files.path(index, modality.files[0]), own, size)
            else:
                content = self._reader.image(index, modality, size).transpose(1, 2, 0)
                own = size
            contents.append(np.ascontiguousarray(content))
            sizes.append(own)
        return [*contents, label], [*sizes, size]

    def _read_label(self, index: int) -> tuple[Input, Size]:
        files = self._plan.files
        if not self.label_encoded:
            label = read_label(files, index)
            return label[:, :, None], (label.shape[0], label.shape[1])
        path = files.path(index, files.spec.label.file)
        data = read_bytes(path)
        height, width = check_header(data, path, label=True)
        check_width(path, width, files.spec)
        return np.frombuffer(data, np.uint8), (height, width - files.spec.skip_columns)

    def _read_image(self, index: int, modality: ModalitySpec) -> tuple[Input, Size]:
        files = self._plan.files
        path = files.path(index, modality.files[0])
        data = read_bytes(path)
        height, width = check_header(data, path, bits=modality.bits)
        check_width(path, width, files.spec)
        return np.frombuffer(data, np.uint8), (height, width - files.spec.skip_columns)

    def _windows(self, geometry: Geometry) -> list[Input]:
        rows, cols = geometry.rows, geometry.cols
        return [
            *_region(geometry, nearest=True),
            _pair(rows.length, cols.length),
            _pair(rows.out, cols.out),
            *(_region(geometry, nearest=False) if self.bilinear else ()),
        ]

    def _first_resizes(self, sizes: list[Size]) -> list[Input]:
        """Regions that bring each free modality to the size of the label."""
        inputs: list[Input] = []
        for position in self._free:
            axes = map(resampled, sizes[position], sizes[-1])
            inputs += [*_region(Geometry(*axes), nearest=True), _pair(*sizes[-1])]
        return inputs


def _region(geometry: Geometry, *, nearest: bool) -> tuple[Input, Input]:
    top, bottom = geometry.rows.region(nearest=nearest)
    left, right = geometry.cols.region(nearest=nearest)
    return _pair(top, left), _pair(bottom, right)


def _pair(row: float, col: float) -> Input:
    return np.array([row, col], np.float32)
