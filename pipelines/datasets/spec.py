"""Data sets as pure data: folders, formats, label map, classes. Both loaders read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import DataError
from ..tools.unknown import did_you_mean

Interpolation = Literal["bilinear", "nearest"]
Sensor = Literal["camera", "event", "lidar", "other"]
Decoder = Literal["image", "array", "points", "polar", "events"]
LabelCoding = Literal["ids", "indices", "colours"]
Triple = tuple[float, float, float]

ILLEGAL = -1
"""Entry of a label table for a raw value that must not occur."""


@dataclass(frozen=True)
class FileSpec:
    """Folder and name of one file of a sample."""

    folder: str
    """Folder under the root of the data set; ``/`` separates parts."""
    tag: str = ""
    """Part of the file name that tells this file from the others of its sample."""
    suffix: str = ".png"
    """End of the file name, for path templates with ``{suffix}``."""
    path_template: str = ""
    """Path of its own, in place of the data set's template."""


@dataclass(frozen=True)
class ModalitySpec:
    """One registered image of three channels per sample.

    A loader keeps what the file holds (uint8 or uint16 codes, or float32 values) until it has the
    final size. Network input = (code * scale + offset - mean) / std, channel by channel.

    Raises:
        ValueError: fields contradict each other.
    """

    name: str
    """Name in configs and tables."""
    letter: str
    """One capital letter that stands for it in names of subsets."""
    files: tuple[FileSpec, ...]
    """One image, or the arrays whose channels are stacked in this order."""
    sensor: Sensor = "other"
    """What took it: photometric augmentation is for cameras, some corruptions for one kind."""
    decoder: Decoder = "image"
    """``image``: PNG or JPEG; ``array``: NPY or NPZ. The others are raw sensor files, which can be
    checked but not loaded: ``points`` (LiDAR .bin), ``polar`` (radar PNG), ``events`` (HDF5)."""
    bits: tuple[int, ...] = (8,)
    """Bits per channel that an image may have. With 16, codes are uint16, and 8-bit files of a
    modality that allows both are multiplied by 257, so that the fraction of white stays."""
    channels: tuple[int, int, int] = (0, 1, 2)
    """Which stored channel each of the three is; grey images count as three equal ones."""
    interpolation: Interpolation = "bilinear"
    """Rule for changing its size; nearest keeps binary and sparse maps what they are."""
    scale: float = 1 / 255
    """Value of one code step, in ``unit``."""
    offset: float = 0.0
    """Value of code 0."""
    unit: str = ""
    """What values are measured in; empty for fractions."""
    mean: Triple = (0.0, 0.0, 0.0)
    """Mean per channel, of values."""
    std: Triple = (1.0, 1.0, 1.0)
    """Standard deviation per channel, of values."""
    empty: float = 0
    """Code of no measurement, with which crops are padded."""
    shown: tuple[tuple[float, float], ...] = ((0.0, 1.0),) * 3
    """Values per channel that pictures show as black and as white."""
    any_size: bool = False
    """Files may differ in size from the label; they are brought to its size by nearest."""
    high_byte: bool = False
    """Compatibility: keep the upper half of 16-bit codes, as PIL does when it converts to RGB."""
    stretch: bool = False
    """Compatibility: stretch each image to 0..255 by its own extremes; a constant one becomes 0."""

    def __post_init__(self) -> None:
        if not self.files or (len(self.files) > 1 and self.decoder != "array"):
            raise ValueError(f"{self.name}: a modality is one file, or several arrays")
        if not set(self.bits) <= {8, 16} or not self.bits:
            raise ValueError(f"{self.name}: bits must be 8, 16 or both, got {self.bits}")
        if self.high_byte and self.bits != (16,):
            raise ValueError(f"{self.name}: only 16-bit codes have a high byte to keep")
        if not self.scale or not all(value > 0 for value in self.std):
            raise ValueError(f"{self.name}: scale must not be 0 and std must be positive")

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16] | np.dtype[np.float32]:
        """Dtype that holds the codes: uint8, uint16 or float32."""
        if self.decoder != "image" or self.stretch:
            return np.dtype(np.float32)
        if self.bits == (8,) or self.high_byte:
            return np.dtype(np.uint8)
        return np.dtype(np.uint16)

    @property
    def loadable(self) -> bool:
        """True if the file is an image or an array, and not a raw sensor file."""
        return self.decoder in ("image", "array")


@dataclass(frozen=True)
class LabelSpec:
    """The label image, 8 bit: ids in its only channel or all three alike, indices or colours."""

    file: FileSpec
    """The label image."""
    table: tuple[int, ...]
    """Train id for each of the 256 raw values; the ignore index or ``ILLEGAL`` where none."""
    mask: FileSpec | None = None
    """8-bit image; labels are ignored where it is not black."""
    red_alone: bool = False
    """Whether the raw value is in red alone, and green and blue hold something else. Otherwise an
    image whose channels differ is painted in colours, and refused."""
    # caches that are there hold hashes of what stands above
    coding: LabelCoding = field(default="ids", repr=False)
    """``indices``: a palette PNG, too, whose indices are the raw values; ``colours``: painted, and
    ``colours`` says what stands for what in place of the table."""
    colours: tuple[tuple[tuple[int, int, int], int], ...] = field(default=(), repr=False)
    """Painted colour (R, G, B) and its train id, or the ignore index."""
    other_colours: int = field(default=ILLEGAL, repr=False)
    """Train id of other colours; ``ILLEGAL``: they must not occur."""

    @property
    def files(self) -> tuple[FileSpec, ...]:
        """The label image and its mask."""
        return (self.file,) if self.mask is None else (self.file, self.mask)


@dataclass(frozen=True)
class ConditionSpec:
    """A field of the path template that names the conditions of a sample, such as its weather."""

    field: str
    """Name of the field."""
    values: tuple[str, ...]
    """Its values, each of them a whole part of a path."""


@dataclass(frozen=True)
class DatasetSpec:
    """Paths, modalities, label map and classes of one data set.

    Raises:
        ValueError: names or letters repeat, lengths do not agree, or train ids exceed 8 bits.
    """

    name: str
    """Name in configs and checkpoints."""
    path_template: str
    """Path under the root with ``{folder}``, ``{split}``, ``{tag}``, ``{suffix}``, free fields."""
    sample_id: str
    """Name of a sample, from the fields of ``path_template`` that all its files share."""
    modalities: tuple[ModalitySpec, ...]
    """The modalities that are used unless named, in their canonical order."""
    label: LabelSpec
    """The label image."""
    classes: tuple[str, ...]
    """K names; the index is the train id."""
    palette: tuple[tuple[int, int, int], ...]
    """K colours (R, G, B), 0..255."""
    splits: tuple[str, ...]
    """Names of the splits."""
    extras: tuple[ModalitySpec, ...] = ()
    """Modalities that are used only if named."""
    split_list: str = ""
    """File with one sample of ``{split}`` per line, up to the first space; empty: splits are
    folders, a field of the path template."""
    list_line: str = ""
    """What a line of ``split_list`` looks like; empty: a sample id."""
    split_paths: tuple[tuple[str, str], ...] = ()
    """What ``{split}`` stands for in paths; a split that is not named here stands for itself."""
    shares: tuple[tuple[str, float], ...] = ()
    """Share of the samples of each split, which are dealt out by their names; none: splits are
    folders or lists."""
    share_seed: int = 0
    """Another one deals them out otherwise."""
    share_group: str = ""
    """Field whose values stay together in one share; empty: samples are on their own."""
    conditions: tuple[ConditionSpec, ...] = ()
    """Fields that describe the conditions of a sample; no two share a value."""
    cases: tuple[str, ...] = ()
    """Known endings ``_<case>`` of the field ``scene``; a scene without one is ``normal``."""
    published: tuple[tuple[str, int], ...] = ()
    """Samples per split in the published set."""
    required: tuple[str, ...] = ()
    """Further files that must be there."""
    hint: str = ""
    """What to do if files are missing."""
    origin: str = ""
    """File that describes the set; empty: it is one of the catalogue."""
    skip_columns: int = 0
    """Columns that are cut off at the left of every image and label."""
    resize: tuple[int, int] | None = None
    """Compatibility: (height, width) that images are stretched to by PIL's bicubic rule and labels
    by nearest, before anything else."""
    ignore_index: int = 255
    """Label of pixels that are neither trained on nor scored."""

    def __post_init__(self) -> None:
        everything = (*self.modalities, *self.extras)
        for key in ("name", "letter"):
            _distinct(f"{self.name}: modality {key}s", [getattr(m, key) for m in everything])
        conditions = [value for spec in self.conditions for value in spec.values]
        _distinct(f"{self.name}: conditions", conditions)
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"{self.name}: {len(self.palette)} colours for {len(self.classes)} classes"
            )
        if len(self.label.table) != 256:
            raise ValueError(
                f"{self.name}: the label table needs 256 entries, got {len(self.label.table)}"
            )
        if not len(self.classes) <= self.ignore_index <= 255:
            raise ValueError(
                f"{self.name}: labels have 8 bits, so the ignore index must lie between the number "
                f"of classes, {len(self.classes)}, and 255; got {self.ignore_index}"
            )
        legal = {*range(len(self.classes)), self.ignore_index, ILLEGAL}
        if not legal.issuperset(self.label.table):
            strange = sorted(set(self.label.table) - legal)
            raise ValueError(f"{self.name}: the label table maps to {strange}, not train ids")
        if self.resize and not all(m.bits == (8,) or m.high_byte for m in everything):
            raise ValueError(f"{self.name}: resize works on 8-bit images")

    @property
    def num_classes(self) -> int:
        """K, the ignore index not counted."""
        return len(self.classes)

    @property
    def called(self) -> str:
        """What ``--data.dataset`` calls it: its name, or the file that describes it."""
        return self.origin or self.name

    def select(self, names: Iterable[str] = ()) -> tuple[ModalitySpec, ...]:
        """The modalities called ``names``, in that order; without names, all but the extras.

        Raises:
            DataError: a name is not known.
        """
        known = {m.name: m for m in (*self.modalities, *self.extras)}
        for name in names:
            if name not in known:
                raise unknown_name(f"modality of {self.name}", name, known)
        return tuple(known[name] for name in names) or self.modalities


def label_table(train_ids: Mapping[int, int]) -> tuple[int, ...]:
    """The 256-entry table of ``raw value -> train id``; every value not named is ``ILLEGAL``.

    Raises:
        ValueError: a raw value does not fit into 8 bits.
    """
    beyond = sorted(set(train_ids) - set(range(256)))
    if beyond:
        raise ValueError(f"raw values of labels are 0 to 255, got {beyond}")
    return tuple(train_ids.get(raw, ILLEGAL) for raw in range(256))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> DataError:
    """The error for a misspelt name, with the nearest known one."""
    names = list(known)
    hint = did_you_mean(name, names)
    return DataError(f"unknown {kind}: {name!r}; {hint}known: {', '.join(names)}")


def _distinct(what: str, values: list[str]) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"{what} repeat: {' '.join(values)}")
