"""What a data set is: folders, formats, label map, classes. Pure data, read by both loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from .errors import DataError

Interpolation = Literal["bilinear", "nearest"]

ILLEGAL = -1
"""Entry of a label table for a raw value that must not occur."""


@dataclass(frozen=True)
class ModalitySpec:
    """One registered image per sample: 8-bit, three channels after decoding (grey is replicated).

    Network input = (code / 255 - mean) / std, channel by channel.
    """

    name: str
    """Name in configs and tables."""
    letter: str
    """One capital letter that stands for it in names of subsets."""
    folder: str
    """Folder under the root of the data set."""
    tag: str
    """Part of the file name that tells this modality's file from the others."""
    interpolation: Interpolation = "bilinear"
    """Rule for changing its size; nearest keeps binary and sparse maps what they are."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Mean per channel, on the 0..1 scale."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Standard deviation per channel, on the 0..1 scale."""
    any_size: bool = False
    """Files may differ in size from the label; they are brought to its size by nearest."""


@dataclass(frozen=True)
class LabelSpec:
    """The label image: raw value in its red (or only) channel, 8 bit."""

    folder: str
    """Folder under the root of the data set."""
    tag: str
    """Part of the file name."""
    table: tuple[int, ...]
    """Train id for each of the 256 raw values; the ignore index or ``ILLEGAL`` where none."""


@dataclass(frozen=True)
class DatasetSpec:
    """Layout, modalities, label map and classes of one data set.

    Raises:
        ValueError: names or letters repeat, or lengths do not agree.
    """

    name: str
    """Name in configs and checkpoints."""
    layout: str
    """Path under the root with ``{folder}``, ``{split}``, ``{tag}`` and free fields."""
    sample_id: str
    """Name of a sample, from the fields of ``layout`` that all its files share."""
    modalities: tuple[ModalitySpec, ...]
    """All modalities in their canonical order."""
    label: LabelSpec
    """The label image."""
    classes: tuple[str, ...]
    """K names; the index is the train id."""
    palette: tuple[tuple[int, int, int], ...]
    """K colours (R, G, B), 0..255."""
    splits: tuple[str, ...]
    """Names of the splits."""
    conditions: tuple[str, ...] = ()
    """Values of the field ``condition``."""
    cases: tuple[str, ...] = ()
    """Known endings ``_<case>`` of the field ``scene``; a scene without one is ``normal``."""
    ignore_index: int = 255
    """Label of pixels that are neither trained on nor scored."""

    def __post_init__(self) -> None:
        for field in ("name", "letter"):
            values = [getattr(m, field) for m in self.modalities]
            if len(set(values)) != len(values):
                raise ValueError(f"{self.name}: modality {field}s repeat: {' '.join(values)}")
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"{self.name}: {len(self.palette)} colours for {len(self.classes)} classes"
            )
        if len(self.label.table) != 256:
            raise ValueError(
                f"{self.name}: the label table needs 256 entries, got {len(self.label.table)}"
            )
        legal = {*range(len(self.classes)), self.ignore_index, ILLEGAL}
        if not legal.issuperset(self.label.table):
            strange = sorted(set(self.label.table) - legal)
            raise ValueError(f"{self.name}: the label table maps to {strange}, not train ids")

    @property
    def num_classes(self) -> int:
        """K, the ignore index not counted."""
        return len(self.classes)

    def select(self, names: Iterable[str] = ()) -> tuple[ModalitySpec, ...]:
        """The modalities called ``names``, in that order; all for no name.

        Raises:
            DataError: a name is not known.
        """
        known = {m.name: m for m in self.modalities}
        for name in names:
            if name not in known:
                raise unknown_name(f"modality of {self.name}", name, known)
        return tuple(known[name] for name in names) or self.modalities


def label_table(train_ids: Mapping[int, int]) -> tuple[int, ...]:
    """The 256-entry table of ``raw value -> train id``; every value not named is ``ILLEGAL``."""
    return tuple(train_ids.get(raw, ILLEGAL) for raw in range(256))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> DataError:
    """The error for a misspelt name, with the nearest known one."""
    names = list(known)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return DataError(f"unknown {kind}: {name!r}; {hint}known: {', '.join(names)}")
