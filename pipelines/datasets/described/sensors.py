"""The ``[[sensors]]`` tables of a description."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import fields as fields_of
from pathlib import PurePosixPath
from typing import Annotated, Any

from ...errors import DataError
from ...tools.settings import MOST, Range, misfit
from ..catalogue import imagenet
from ..spec import Interpolation, Sensor, Triple
from .description import Pair, SensorText
from .table import HELP, Number, Table, converted, distinct
from .templates import ARRAYS, IMAGES, take_template

_KEYS = tuple(field.name for field in fields_of(SensorText))
_CODES = {8: 255, 16: 65535}
_STORED = ((8,), (16,), (8, 16))
_Channel = Annotated[int, Range(0, 4095)]
_Plus = Annotated[float, Range(0, MOST, above=True)]


def take_sensors(
    top: Table, allowed: re.Pattern[str]
) -> tuple[tuple[SensorText, ...], list[tuple[Table, str]]]:
    """The sensors in their order, and the table and path of each for further checks.

    Raises:
        DataError: there is none, one is there twice, or a key cannot be used.
    """
    listed = top.take("sensors", object)
    if not isinstance(listed, list) or not listed:
        raise top.fault("sensors", "a table [[sensors]] for each sensor, at least one")
    tables = [
        Table(values, top.file, f"sensor {_called(values, place)}", _KEYS)
        for place, values in enumerate(listed, start=1)
    ]
    names = [_name(table, allowed) for table in tables]
    distinct(top.file, "sensor", names)
    letters = _letters(tables, names)
    sensors = tuple(map(_sensor, tables, names, letters))
    return sensors, [(t, s.files) for t, s in zip(tables, sensors, strict=True)]


def _called(values: Any, place: int) -> str:
    name = values.get("name") if isinstance(values, dict) else None
    return repr(name) if isinstance(name, str) else f"number {place}"


def _name(table: Table, allowed: re.Pattern[str]) -> str:
    name: str = table.take("name", str)
    if not allowed.fullmatch(name) or name == "label":
        raise table.fault("name", "letters, digits, - _ and ., and not label", "Rename it")
    return name


def _letters(tables: Sequence[Table], names: Sequence[str]) -> list[str]:
    """The capital letter of each sensor: as given, or the first of its name that is free."""
    given = [table.take("letter", str, "") for table in tables]
    for table, letter in zip(tables, given, strict=True):
        if "letter" in table and (len(letter) != 1 or letter not in string.ascii_uppercase):
            raise table.fault("letter", "one capital letter from A to Z")
        if letter and given.count(letter) > 1:
            raise table.fault("letter", "a letter that no other sensor has", "Choose another one")
    if len(names) > len(string.ascii_uppercase):
        raise DataError(f"{tables[0].file}: {len(names)} sensors; expected at most 26", "toml")
    taken = set(given)
    letters = []
    for name, letter in zip(names, given, strict=True):
        if not letter:
            wanted = name.upper() + string.ascii_uppercase
            letter = next(x for x in wanted if x in string.ascii_uppercase and x not in taken)
        taken.add(letter)
        letters.append(letter)
    return letters


def _sensor(table: Table, name: str, letter: str) -> SensorText:
    files = take_template(table, IMAGES + ARRAYS)
    image = PurePosixPath(files).suffix.lower() in IMAGES
    bits = _bits(table) if image else _no_bits(table)
    kind: Sensor = table.take("kind", Sensor, "other")
    whole = _CODES[max(bits)] if bits else 1
    scale: float = table.take("scale", Number, 1 / whole)
    if not scale:
        raise table.fault("scale", "a number that is not 0: what one step of the code is worth")
    offset: float = table.take("offset", Number, 0.0)
    mean, std = _mean(table), _std(table)
    if any(misfit(_Plus, value) for value in std):
        raise table.fault("std", "numbers above 0", "A channel that never changes has std = 1")
    everything = (min(offset, offset + whole * scale), max(offset, offset + whole * scale))
    usual = (everything,) * 3
    if max(bits, default=16) == 16 and "std" in table:
        usual = tuple((m - 2 * s, m + 2 * s) for m, s in zip(mean, std, strict=True))  # type: ignore[assignment]
    return SensorText(
        name=name,
        files=files,
        letter=letter,
        kind=kind,
        bits=bits,
        channels=_channels(table, image),
        interpolation=table.take("interpolation", Interpolation, "bilinear"),
        scale=scale,
        offset=offset,
        unit=table.take("unit", str, ""),
        mean=mean,
        std=std,
        empty=_empty(table, whole if image else None),
        shown=_shown(table, usual),
        any_size=table.take("any_size", bool, False),
    )


def _bits(table: Table) -> tuple[int, ...]:
    if "bits" not in table:
        return (8,)
    value = table.raw("bits")
    bits = tuple(sorted(value)) if _is_whole_list(value) else (value,)
    if bits not in _STORED or any(type(number) is not int for number in bits):
        raise table.fault(
            "bits",
            "8, 16 or [8, 16]: bits per channel of its files",
            "python -m fastseg.data describe --root DIR says what the files have",
        )
    return bits


def _is_whole_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _no_bits(table: Table) -> tuple[int, ...]:
    if "bits" in table:
        raise table.fault("bits", "no bits, as arrays say their own type", "Take the key out")
    return ()


def _channels(table: Table, image: bool) -> tuple[int, ...]:
    value = table.raw("channels")
    if "channels" not in table:
        return (0, 1, 2)
    found = value if isinstance(value, list) else [value]
    found = found * 3 if len(found) == 1 else found
    most = 2 if image else 4095
    if len(found) != 3 or any(misfit(_Channel, x) or x > most for x in found):
        raise table.fault("channels", f"one or three stored channels, numbered from 0 to {most}")
    return tuple(found)


def _mean(table: Table) -> Triple:
    if table.raw("mean") == "imagenet":
        return imagenet.MEAN
    return table.three("mean", (0.0, 0.0, 0.0))


def _std(table: Table) -> Triple:
    if table.raw("std") == "imagenet":
        return imagenet.STD
    return table.three("std", (1.0, 1.0, 1.0))


def _empty(table: Table, most: int | None) -> float:
    value: float = table.take("empty", Number, 0.0)
    if most is not None and not (0 <= value <= most and value == int(value)):
        raise table.fault("empty", f"a code from 0 to {most}")
    return value


def _shown(table: Table, usual: tuple[Pair, ...]) -> tuple[Pair, ...]:
    value = table.raw("shown")
    if "shown" not in table:
        return usual
    pairs = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    found = converted(tuple[tuple[float, float], ...], pairs)
    if (
        misfit(tuple[tuple[Number, Number], ...], found)
        or len(found) not in (1, 3)
        or any(low >= high for low, high in found)
    ):
        raise table.fault(
            "shown", "[black, white], values with black below white, or three such pairs", HELP
        )
    return tuple(found * 3 if len(found) == 1 else found)
