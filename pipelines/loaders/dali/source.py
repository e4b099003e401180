"""Input of DALI: per step the bytes of the files, and the regions that the crops read.

Everything that is drawn or depends on an image's size is computed here, in Python, from the same
``Geometry`` that the torch loader uses. Files that DALI cannot decode exactly (arrays, readings for
compatibility, masks) are decoded here by the torch loader's functions, and packed ones need no
decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...datasets.spec import ModalitySpec
from ...datasets.split_files import SplitFiles
from ...decode import png
from ...decode.by_spec import check_width, resampled, wrong_size
from ...decode.images import check_header, decode_ids
from ...faults.sensor_faults import Corruptor
from ...tools.reading import read_bytes
from ...transform.geometry import Geometry
from ...transform.photometric import Augmenter, is_photo
from ..plan import Plan
from ..samples import SampleReader, blank

Input = NDArray[Any]
Size = tuple[int, int]
Feed = Literal["bytes", "pixels", "sized"]
"""How an image is fed: as its file, decoded, or decoded and in the size of the label."""


@dataclass(frozen=True)
class Port:
    """One input of the graph.

    Attributes:
        dtype: dtype of the arrays.
        ndim: number of their axes; with three they are pixels ``[H, W, C]``.
    """

    dtype: np.dtype[np.generic]
    ndim: int


def dali_decodes(files: SplitFiles, modality: ModalitySpec) -> bool:
    """True if DALI can make the codes of this modality's files."""
    return (
        modality.decoder == "image"
        and not modality.high_byte
        and not modality.stretch
        and files.spec.resize is None
        and not any(name == modality.name for name, _ in files.absent)
    )


def dali_decodes_label(files: SplitFiles) -> bool:
    """True if DALI can make the raw values of label files."""
    label = files.spec.label
    return label.mask is None and label.coding == "ids" and files.spec.resize is None


class Source:
    """Callable for ``external_source``: iteration to one list of arrays per port.

    Attributes:
        ports: the inputs by name, in order. ``<modality>`` and ``label`` hold the images;
            ``start``, ``end`` the nearest region and ``linear_start``, ``linear_end`` the bilinear
            one, ``window`` and ``output`` sizes, each float32 ``[2]`` (rows, columns). Modalities
            that may come in another size have ``<modality>_start``, ``_end`` and ``_window`` of the
            resize that brings them to the label's; photos that DALI decodes have
            ``<modality>_looks`` ``[4]``: factors of the jitter and sigma of the blur, -1 for
            none. ``sigma`` and ``taps`` are those of a blur of the crop.
        feeds: form in which each modality is fed, by its name.
    """

    def __init__(self, plan: Plan, steps: range) -> None:
        self._plan, self._steps = plan, steps
        self._reader = SampleReader(plan.files, plan.store)
        self._corrupt = Corruptor(plan.corruption, plan.files, plan.seed)
        modalities = plan.files.modalities
        self.feeds = {modality.name: self._feed(modality) for modality in modalities}
        self.label_encoded = plan.store is None and dali_decodes_label(plan.files)
        self.ports = self._ports()

    def __call__(self, iteration: int) -> list[list[Input]]:
        """The inputs of one batch.

        Raises:
            StopIteration: all steps are done.
            DataError: a file is missing or of a format or size that cannot be used.
        """
        if iteration >= len(self._steps):
            raise StopIteration
        step = self._steps[iteration]
        epoch, planned = self._plan.order.at(step)
        read_one = partial(self._read, epoch)
        first_readable = self._plan.damage.first_readable
        read = [first_readable(epoch, index, read_one)[1] for index in planned]
        plan = self._plan.settled(step)
        geometries = plan.geometries(step, [size for _, size in read])
        samples = [
            contents | self._windows(geometry)
            for (contents, _), geometry in zip(read, geometries, strict=True)
        ]
        return [[sample[name] for sample in samples] for name in self.ports]

    def blurred_here(self, modality: ModalitySpec) -> bool:
        """True if the graph blurs the crops of this modality."""
        plan = self._plan
        after = plan.config.blur > 0 and plan.config.blur_place == "crop"
        return plan.photometric and after and is_photo(modality)

    def retouched_here(self, modality: ModalitySpec) -> bool:
        """True if the graph changes whole images of this modality after decoding."""
        encoded = self.feeds[modality.name] == "bytes"
        return self._plan.photometric and encoded and is_photo(modality)

    def _feed(self, modality: ModalitySpec) -> Feed:
        if not dali_decodes(self._plan.files, modality) or self._corrupt.faults(modality):
            return "sized"
        return "bytes" if self._plan.store is None else "pixels"

    def _ports(self) -> dict[str, Port]:
        modalities = self._plan.files.modalities
        number, real = np.dtype(np.uint8), np.dtype(np.float32)
        pair = Port(real, 1)
        ports = {}
        for modality in modalities:
            encoded = self.feeds[modality.name] == "bytes"
            ports[modality.name] = Port(number, 1) if encoded else Port(modality.dtype, 3)
            if modality.any_size:
                ports |= {f"{modality.name}_{end}": pair for end in ("start", "end", "window")}
            if self.retouched_here(modality):
                ports[f"{modality.name}_looks"] = pair
        ports["label"] = Port(number, 1 if self.label_encoded else 3)
        ports |= dict.fromkeys(("start", "end", "window", "output"), pair)
        if any(modality.interpolation == "bilinear" for modality in modalities):
            ports |= dict.fromkeys(("linear_start", "linear_end"), pair)
        if any(self.blurred_here(modality) for modality in modalities):
            ports |= {"sigma": Port(real, 0), "taps": Port(np.dtype(np.int32), 0)}
        return ports

    def _read(self, epoch: int, index: int) -> tuple[dict[str, Input], Size]:
        """All inputs of a sample that do not depend on its geometry, and the size of its label."""
        plan, files = self._plan, self._plan.files
        augment = Augmenter(plan.looks(epoch, index), plan.config)
        label, size = self._read_label(index)
        contents = {"label": label}
        for modality in files.modalities:
            name, own = modality.name, size
            if self.feeds[name] == "bytes":
                content, own = self._read_file(index, modality)
            else:
                if self.feeds[name] == "pixels":
                    image = self._reader.store.image(index, modality)
                    own = image.shape[1], image.shape[2]
                else:
                    unused = self._corrupt.discards(modality, epoch, index)
                    if unused and not plan.damage.replaces:
                        image = blank(modality, size)
                    else:
                        image = self._reader.image(index, modality, size)
                    others = plan.damage.other_reader(self._reader.image, image)
                    image = self._corrupt(image, modality, epoch, index, others)
                image = augment.before(image) if is_photo(modality) else image
                content = np.ascontiguousarray(image.transpose(1, 2, 0))
            if own != size and not modality.any_size:
                raise wrong_size(files.path(index, modality.files[0]), own, size)
            contents[name] = content
            if modality.any_size:
                first = Geometry(*map(resampled, own, size))
                start, end = _region(first, nearest=True)
                contents |= {f"{name}_start": start, f"{name}_end": end}
                contents[f"{name}_window"] = _pair(*size)
            if self.retouched_here(modality):
                contents[f"{name}_looks"] = augment.vector()
        if "sigma" in self.ports:
            sigma, taps = augment.crop_blur()
            contents |= {"sigma": np.array(sigma, np.float32), "taps": np.array(taps, np.int32)}
        return contents, size

    def _read_label(self, index: int) -> tuple[Input, Size]:
        files = self._plan.files
        if not self.label_encoded:
            label = self._reader.store.label(index)
            # three equal channels: the resize of one was seen to crash, that of three never
            return np.repeat(label[:, :, None], 3, axis=2), (label.shape[0], label.shape[1])
        path = files.path(index, files.spec.label.file)
        data = read_bytes(path)
        height, width = check_header(data, path, label=True)
        if png.in_colour(data) and not files.spec.label.red_alone:
            # the graph reads red alone: comparing channels there would slow grey labels as well
            decode_ids(data, path, red_alone=False)
        check_width(path, width, files.spec)
        return np.frombuffer(data, np.uint8), (height, width - files.spec.skip_columns)

    def _read_file(self, index: int, modality: ModalitySpec) -> tuple[Input, Size]:
        files = self._plan.files
        path = files.path(index, modality.files[0])
        data = read_bytes(path)
        height, width = check_header(data, path, bits=modality.bits)
        check_width(path, width, files.spec)
        return np.frombuffer(data, np.uint8), (height, width - files.spec.skip_columns)

    def _windows(self, geometry: Geometry) -> dict[str, Input]:
        rows, cols = geometry.rows, geometry.cols
        start, end = _region(geometry, nearest=True)
        windows = {"start": start, "end": end}
        windows |= {"window": _pair(rows.length, cols.length), "output": _pair(rows.out, cols.out)}
        if "linear_start" in self.ports:
            start, end = _region(geometry, nearest=False)
            windows |= {"linear_start": start, "linear_end": end}
        return windows


def _region(geometry: Geometry, *, nearest: bool) -> tuple[Input, Input]:
    top, bottom = geometry.rows.region(nearest=nearest)
    left, right = geometry.cols.region(nearest=nearest)
    return _pair(top, left), _pair(bottom, right)


def _pair(row: float, col: float) -> Input:
    return np.array([row, col], np.float32)
