"""Values that a setting may have: declared beside its field, checked when it is constructed.

A field says its type and, where that is not enough, a `Range`::

    power: Annotated[float, Range(0, above=True)] = 0.9

`check_fields` in ``__post_init__`` checks all fields of a dataclass; `misfit` checks one value.

A default says, too, whether a run may go on after the field has changed::

    seed: Seed = binding(0)
    log_every: Count = harmless(20)

A mark holds for all fields below one that is a dataclass itself; without a mark, those have theirs.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

MOST = 2**31 - 1
"""Largest number of a setting without an upper limit of its own."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers from ``low`` to ``high``."""

    low: float = -MOST
    high: float = MOST
    above: bool = False
    """``low`` itself is not allowed."""
    below: bool = False
    """``high`` itself is not allowed."""
    multiple: int = 0
    """Only multiples of this number are allowed; 0: all numbers are."""
    says: str = ""
    """What is allowed, in words, in place of the limits."""

    def __contains__(self, value: float) -> bool:
        # comparisons with nan are false, so that it is never inside
        if not self.low <= value <= self.high or (self.multiple and value % self.multiple):
            return False
        return not ((self.above and value == self.low) or (self.below and value == self.high))

    def __str__(self) -> str:
        if self.says:
            return self.says
        low, high = f"{self.low:.15g}", f"{self.high:.15g}"
        if self.multiple:
            return f"a multiple of {self.multiple} from {low} to {high}"
        if self.high == MOST:
            return f"above {low}" if self.above else f"at least {low}"
        if self.above:
            return f"between {low} and {high}" if self.below else f"above {low} and at most {high}"
        return f"in [{low}, {high})" if self.below else f"from {low} to {high}"


Count = Annotated[int, Range(1)]
"""A whole number from 1 on."""
Natural = Annotated[int, Range(0)]
"""A whole number from 0 on."""
Positive = Annotated[float, Range(0, above=True)]
"""A number above 0."""
NotNegative = Annotated[float, Range(0)]
"""A number from 0 on."""
Fraction = Annotated[float, Range(0, 1, above=True, below=True)]
"""A number strictly between 0 and 1."""
Probability = Annotated[float, Range(0, 1, says="a probability from 0 to 1")]
"""A number from 0 to 1."""
Seed = Annotated[int, Range(0, 2**63 - 1, says="at least 0 and below 2**63")]
"""A seed that every random generator takes."""
Workers = Annotated[int, Range(0, 1024)]
"""Processes or threads."""
# larger images would not fit into memory
Side = Annotated[int, Range(32, 2**15, multiple=32)]
"""Height and width of the network's input in pixels."""
SceneSide = Annotated[int, Range(64, 1042)]
"""Height and width of a rendered frame in pixels."""

_HARMLESS = "harmless"
"""Key of a mark in the metadata of a field."""

_BASIC: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    Path: ((Path,), "a path"),
}
_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 80


def binding(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A default, or what makes it, of a field that changes what is learnt."""
    return _marked(False, default, factory)


def harmless(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A default, or what makes it, of a field that cannot change what is learnt."""
    return _marked(True, default, factory)


def _marked(is_harmless: bool, default: Any, factory: Any) -> Any:
    metadata = {_HARMLESS: is_harmless}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def is_harmless(kind: Any, name: str) -> bool:
    """True if a field, such as ``data.workers``, cannot change what is learnt.

    Raises:
        LookupError: neither the field nor one above it has a mark.
    """
    first, _, rest = name.partition(".")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if first in fields and _HARMLESS in fields[first].metadata:
        return bool(fields[first].metadata[_HARMLESS])
    section = field_types(kind).get(first)
    if not rest or not isinstance(section, type) or not dataclasses.is_dataclass(section):
        raise LookupError(f"{kind.__name__}.{first} is marked neither binding nor harmless")
    return is_harmless(section, rest)


def check_fields(settings: Any) -> None:
    """Check every field of a dataclass by its annotation.

    Raises:
        ValueError: a value is of another type or out of range; the message names the field, what
            it must be, and the value.
    """
    owner: Any = type(settings)
    for name, kind in field_types(owner).items():
        value = getattr(settings, name)
        if expected := misfit(kind, value):
            raise ValueError(f"{name} must be {expected}, got {shown(value)}")


def check_order(settings: Any, *names: str) -> None:
    """Check fields that are ranges themselves.

    Raises:
        ValueError: the upper end of a pair lies below the lower one.
    """
    for name in names:
        low, high = getattr(settings, name)
        if low > high:
            raise ValueError(f"{name} must be 0 <= low <= high, got {low} {high}")


@lru_cache
def field_types(kind: type[Any]) -> dict[str, Any]:
    """Names and resolved annotations of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def misfit(kind: Any, value: Any) -> str | None:
    """Description of what a value of the annotation ``kind`` must be; None if ``value`` fits."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        ranges = [extra for extra in args[1:] if isinstance(extra, Range)]
        return misfit(args[0], value) or _outside(ranges, value)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else misfit(args[0], value)
    if origin is Literal:
        known = any(value == arg and type(value) is type(arg) for arg in args)
        return None if known else f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return _misfit_of_items(args, value)
    if origin is dict:
        if not isinstance(value, dict):
            return "an object"
        return _first_misfit("an object", [(args[1], item) for item in value.values()])
    if kind not in _BASIC:
        return None if isinstance(value, kind) else f"settings of kind {kind.__name__}"
    fitting, noun = _BASIC[kind]
    if not isinstance(value, fitting) or (isinstance(value, bool) and kind is not bool):
        return noun
    return "text that is not empty" if value == "" else None


def shown(value: Any) -> str:
    """``repr`` of a value, cut so that it fits into a message."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    return _shortened.repr(value)


def as_path(text: str) -> Path:
    """The path that a user has written, ``~`` expanded.

    Raises:
        ValueError: it is empty, holds a null byte, or names a home folder that is not known.
    """
    if not text or "\0" in text:
        raise ValueError(f"expected a path, got {shown(text)}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder for {shown(text)}; write the path out") from None


def _outside(ranges: list[Range], value: Any) -> str | None:
    if value is None:
        return None
    for allowed in ranges:
        if value not in allowed:
            too_large = value > MOST == allowed.high
            return f"at most {MOST}" if too_large else str(allowed)
    return None


def _misfit_of_items(args: tuple[Any, ...], value: Any) -> str | None:
    if not isinstance(value, tuple):
        return "a list"
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        return f"a list of {len(args)} values"
    return _first_misfit("a list", list(zip(args, value, strict=True)))


def _first_misfit(what: str, items: list[tuple[Any, Any]]) -> str | None:
    wrong = (misfit(kind, item) for kind, item in items)
    return next((f"{what} whose values are {text}" for text in wrong if text), None)
