"""A description of a data set as checked dataclasses, its plain form, and how two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..spec import Interpolation, LabelCoding, Sensor, Triple

Colour = tuple[int, int, int]
Pair = tuple[float, float]


@dataclass(frozen=True)
class SensorText:
    """A ``[[sensors]]`` table; see `ModalitySpec` for what is not explained here."""

    name: str
    files: str
    """Path of its files under the root, with fields in braces."""
    letter: str
    kind: Sensor
    bits: tuple[int, ...]
    """Empty for arrays."""
    channels: tuple[int, ...]
    interpolation: Interpolation
    scale: float
    offset: float
    unit: str
    mean: Triple
    std: Triple
    empty: float
    shown: tuple[Pair, ...]
    any_size: bool


@dataclass(frozen=True)
class LabelText:
    """The ``[label]`` table."""

    files: str
    coding: LabelCoding
    ignored: tuple[Any, ...]
    """Ids or colours of pixels that are neither trained on nor scored."""
    others: Literal["error", "ignored"]
    """What becomes of a value that neither a class nor ``ignored`` names."""


@dataclass(frozen=True)
class ClassText:
    """A ``[[classes]]`` table; its place is the train id."""

    name: str
    colour: Colour
    ids: tuple[int, ...]
    """Values in the label files; empty where these are painted in colours."""


@dataclass(frozen=True)
class SplitsText:
    """The ``[splits]`` table; one of the first three says where samples belong."""

    folders: dict[str, str] = field(default_factory=dict)
    """Folder of each split, the field ``{split}`` of paths."""
    lists: dict[str, str] = field(default_factory=dict)
    """List file of each split, under the root."""
    shares: dict[str, float] = field(default_factory=dict)
    """Share of the samples of each split."""
    line: str = ""
    """What a line of a list looks like; empty: the name of a sample."""
    seed: int = 0
    """Another one deals samples out to shares otherwise."""
    group: str = ""
    """Field of the paths whose values stay together in one share; empty: samples are on their
    own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.folders or self.lists or self.shares)


@dataclass(frozen=True)
class Description:
    """A whole file."""

    name: str
    sensors: tuple[SensorText, ...]
    label: LabelText
    classes: tuple[ClassText, ...]
    splits: SplitsText
    conditions: dict[str, tuple[str, ...]]

    def plain(self) -> dict[str, Any]:
        """The description as TOML and JSON have it, with what was left open filled in."""
        values: dict[str, Any] = _listed(asdict(self))
        # what another way of splitting would say is not part of this one
        values["splits"] = {k: v for k, v in values["splits"].items() if v}
        for sensor in values["sensors"]:
            for key in ("bits", "unit"):
                if not sensor[key]:
                    del sensor[key]
        if self.label.coding == "colours":
            for each in values["classes"]:
                del each["ids"]
        return values


def digest(plain: Mapping[str, Any]) -> str:
    """SHA-256 of the plain form, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of two plain forms whose values differ, such as ``sensors.1.mean``, with both values.

    None stands for a key that is not there.
    """
    before, after = _flat(old), _flat(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list) and value and all(isinstance(x, Mapping) for x in value):
        parts = list(enumerate(value))
    if not parts:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, part in parts:
        flat |= _flat(part, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(part) for key, part in value.items()}
    return [_listed(part) for part in value] if isinstance(value, tuple | list) else value
