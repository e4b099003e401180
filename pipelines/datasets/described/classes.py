"""The ``[[classes]]`` tables of a description, and the labels that belong to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields as fields_of
from typing import Annotated, Any

from ...errors import DataError
from ...tools.settings import Range, misfit
from ..spec import LabelCoding
from .description import ClassText, Colour
from .table import Table, converted, distinct

_KEYS = tuple(field.name for field in fields_of(ClassText))
_Byte = Annotated[int, Range(0, 255)]
_RGB = tuple[_Byte, _Byte, _Byte]
_MOST = 255
"""Classes: labels have 8 bits, and one value is for what is ignored."""
_NO_ROOM = "Labels have 8 bits: map larger values to others, and save the labels anew"


def voc_colour(index: int) -> Colour:
    """PASCAL VOC's colours: bits 0, 1, 2 of the index are the top bits of R, G, B, and so on."""
    red, green, blue = (
        sum((index >> 3 * place + channel & 1) << 7 - place for place in range(3))
        for channel in range(3)
    )
    return red, green, blue


def take_classes(top: Table, coding: LabelCoding) -> tuple[ClassText, ...]:
    """The classes in their order.

    Raises:
        DataError: there are fewer than two, a name, colour or id is there twice, or a key cannot
            be used.
    """
    listed = top.take("classes", object)
    if not isinstance(listed, list) or not 2 <= len(listed) <= _MOST:
        raise top.fault("classes", f"a table [[classes]] for each class, from 2 to {_MOST}")
    tables = [
        Table(values, top.file, f"class number {place}", _KEYS)
        for place, values in enumerate(listed, start=1)
    ]
    names: list[str] = [table.take("name", str) for table in tables]
    distinct(top.file, "class", names)
    for table, name in zip(tables, names, strict=True):
        table.where = f"class {name!r}"
    ids = [_ids(table, coding, place) for place, table in enumerate(tables)]
    _once(tables, names, "ids", ids)
    colours = _colours(tables, painted=coding == "colours")
    _once(tables, names, "colour", [(colour,) for colour in colours])
    return tuple(map(ClassText, names, colours, ids))


def take_ignored(label: Table, coding: LabelCoding, classes: Sequence[ClassText]) -> Any:
    """Ids or colours that are ignored: as given, or 255 in labels of ids unless a class has it.

    Raises:
        DataError: one is no id or colour, there twice, or that of a class.
    """
    painted = coding == "colours"
    known: dict[Any, str] = {}
    for each in classes:
        known |= dict.fromkeys([each.colour] if painted else each.ids, each.name)
    if "ignored" not in label:
        return () if painted or 255 in known else (255,)
    value = label.raw("ignored")
    single = not isinstance(value, list) or (painted and value and not isinstance(value[0], list))
    kind: Any = tuple[_RGB, ...] if painted else tuple[_Byte, ...]
    found = converted(kind, [value] if single else value)
    if misfit(kind, found):
        raise label.fault(
            "ignored",
            "colours [R, G, B] from 0 to 255" if painted else "ids from 0 to 255",
            "" if painted else _NO_ROOM,
        )
    for each in found:
        if each in known:
            raise label.fault("ignored", f"nothing of a class, but {known[each]!r} has {each}")
    return tuple(dict.fromkeys(found))


def _ids(table: Table, coding: LabelCoding, place: int) -> tuple[int, ...]:
    if coding == "colours":
        if "ids" in table:
            raise table.fault(
                "ids", 'no ids, as [label] coding is "colours"', "Take the key out, or change it"
            )
        return ()
    if "ids" not in table:
        return (place,)
    value = table.raw("ids")
    ids = tuple(value) if isinstance(value, list) else (value,)
    if not ids or misfit(tuple[_Byte, ...], ids):
        raise table.fault("ids", "an id from 0 to 255, or a list of them", _NO_ROOM)
    return ids


def _colours(tables: Sequence[Table], *, painted: bool) -> list[Colour]:
    """The colour of each class; where labels are not painted, one may be left to us."""
    given: list[Colour | None] = []
    for table in tables:
        if "colour" not in table and not painted:
            given.append(None)
            continue
        colour = converted(_RGB, table.take("colour", object))
        if misfit(_RGB, colour):
            raise table.fault("colour", "[R, G, B], three whole numbers from 0 to 255")
        given.append(colour)
    free = (c for c in map(voc_colour, range(1, 512)) if c not in given)
    return [next(free) if colour is None else colour for colour in given]


def _once(
    tables: Sequence[Table], names: Sequence[str], key: str, values: Sequence[Sequence[Any]]
) -> None:
    """Refuse an id or a colour that two classes have, or one of them twice."""
    seen: dict[Any, str] = {}
    for table, name, own in zip(tables, names, values, strict=True):
        for value in own:
            if value in seen:
                text = list(value) if isinstance(value, tuple) else value
                raise DataError(
                    f"{table.file}, {table.where}: {key} has {text}, which {seen[value]!r} has "
                    "already; expected another one. Change one of the two, or make them one class",
                    "toml",
                )
            seen[value] = name
