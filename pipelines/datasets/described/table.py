"""One table of a description: values by key, each checked, what is not known refused."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Annotated, Any

from ...errors import DataError
from ...tools.settings import Range, misfit, shown
from ...tools.unknown import unknown
from ..spec import Triple

HELP = "docs/reference/data-set-files.md explains every key"
Number = Annotated[float, Range()]
"""Any finite number that is not huge."""

_REQUIRED = object()


class Table:
    """The keys of one table.

    Args:
        values: what the file has in its place.
        file: name of the file for messages.
        where: name of the table for messages, such as ``[label]`` or ``sensor 'rgb'``.
        known: its keys.

    Raises:
        DataError: it is no table, or has a key that is not known.
    """

    def __init__(self, values: object, file: str, where: str, known: Sequence[str]) -> None:
        self.file, self.where = file, where
        if not isinstance(values, dict):
            raise DataError(
                f"{file}, {where}: expected a table with {', '.join(known)}, got {shown(values)}. "
                f"{HELP}",
                "toml",
            )
        for name in values:
            if name not in known:
                raise DataError(f"{file}, {where}: {unknown('key', name, known)}. {HELP}", "toml")
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def raw(self, key: str) -> Any:
        """The value as the file has it; None if it has none."""
        return self._values.get(key)

    def take(self, key: str, kind: Any, default: Any = _REQUIRED, remedy: str = HELP) -> Any:
        """The value of a key, lists as tuples and whole numbers as floats where ``kind`` says so.

        Raises:
            DataError: it is missing without a default, of another type or out of range.
        """
        if key not in self._values:
            if default is _REQUIRED:
                raise DataError(f"{self.file}, {self.where}: {key} is missing. {remedy}", "toml")
            return default
        value = converted(kind, self._values[key])
        if expected := misfit(kind, value):
            raise self.fault(key, expected, remedy)
        return value

    def three(self, key: str, default: Triple) -> Triple:
        """A number for each channel: three, or one for all.

        Raises:
            DataError: it is neither.
        """
        value = self.raw(key)
        values = value if isinstance(value, list) else [value] * 3
        if key not in self:
            return default
        if len(values) == 1:
            values = values * 3
        if len(values) != 3 or any(misfit(Number, x) for x in values):
            raise self.fault(key, "a number, or three of them, one per channel")
        first, second, third = map(float, values)
        return first, second, third

    def fault(self, key: str, expected: str, remedy: str = HELP) -> DataError:
        """The error for a value that cannot be used."""
        return DataError(
            f"{self.file}, {self.where}: {key} = {shown(self.raw(key))}; expected {expected}. "
            f"{remedy}",
            "toml",
        )


def converted(kind: Any, value: Any) -> Any:
    """A value of TOML or JSON as a field of the type ``kind`` has it, as far as it fits."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return converted(args[0], value)
    if origin is tuple and isinstance(value, list):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(converted(k, x) for k, x in zip(kinds, value, strict=True))
        return tuple(value)
    if kind is float and type(value) is int and value.bit_length() < 64:
        return float(value)
    return value


def distinct(file: str, kind: str, names: Sequence[str]) -> None:
    """Refuse a name that is there twice.

    Raises:
        DataError: one is.
    """
    for place, name in enumerate(names):
        if name in names[:place]:
            raise DataError(
                f"{file}: {kind} {name!r} is there twice, as number {names.index(name) + 1} and "
                f"{place + 1}. Rename one of them or take it out",
                "toml",
            )
