"""The ``[splits]`` table of a description."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields as fields_of
from typing import Annotated, Any

from ...tools.settings import Range, Seed, misfit
from .description import SplitsText
from .table import HELP, Table
from .templates import check_inside, fields

_KEYS = tuple(field.name for field in fields_of(SplitsText))
_WAYS = ("folders", "lists", "shares")
_Share = Annotated[float, Range(0, 1, above=True)]
_ROUNDING = 1e-9


def take_splits(
    top: Table, paths: Sequence[tuple[Table, str]], allowed: re.Pattern[str]
) -> SplitsText:
    """How samples belong to splits.

    Args:
        top: the whole file.
        paths: table and path of every sensor and the label.
        allowed: what splits may be called.

    Raises:
        DataError: there is not one way, or a key cannot be used.
    """
    table = Table(top.take("splits", object), top.file, "[splits]", _KEYS)
    ways = [way for way in _WAYS if way in table]
    if len(ways) != 1:
        found = " and ".join(ways) or "nothing"
        table.where = f"[splits] has {found}"
        raise table.fault(
            ways[1] if ways else "folders", "one of folders, lists and shares", f"Keep one. {HELP}"
        )
    way = ways[0]
    for key, ours in (("line", "lists"), ("seed", "shares"), ("group", "shares")):
        if key in table and way != ours:
            raise table.fault(key, f"no such key beside {way}: it is for {ours}", "Take it out")
    parts = _parts(table, way, allowed)
    _check_field(paths, way)
    known = [name for name in fields(paths[0][1]) if name != "split"]
    if way == "folders":
        return SplitsText(folders={name: _folder(table, value) for name, value in parts.items()})
    if way == "lists":
        for value in parts.values():
            if misfit(str, value):
                raise table.fault(way, "a file for each split, such as { train = 'train.txt' }")
            check_inside(table, way, value)
        return SplitsText(lists=parts, line=_line(table, known))
    if (
        any(misfit(_Share, value) for value in parts.values())
        or sum(parts.values()) > 1 + _ROUNDING
    ):
        raise table.fault(
            way, "a share above 0 for each split, 1 in all at most", "0.8 and 0.2, for instance"
        )
    group: str = table.raw("group") or ""
    if "group" in table and group not in known:
        raise table.fault("group", f"a field of the paths: {', '.join(known)}")
    return SplitsText(
        shares={name: float(value) for name, value in parts.items()},
        seed=table.take("seed", Seed, 0),
        group=group,
    )


def _parts(table: Table, way: str, allowed: re.Pattern[str]) -> dict[str, Any]:
    value = table.raw(way)
    if way == "folders" and isinstance(value, list):
        if misfit(tuple[str, ...], tuple(value)) or len(set(value)) != len(value):
            raise table.fault(way, "names of folders, each once")
        value = {name: name for name in value}
    if not isinstance(value, dict) or not value:
        raise table.fault(way, "a table with a key for each split, at least one", HELP)
    for name in value:
        if not allowed.fullmatch(name):
            raise table.fault(way, "splits called by letters, digits, - _ and .", f"Rename {name}")
    return value


def _folder(table: Table, value: Any) -> str:
    if misfit(str, value) or "/" in value or value in (".", ".."):
        raise table.fault(
            "folders",
            "the name of one folder for each split, without /",
            "It is what {split} stands for in the paths of files",
        )
    return str(value)


def _line(table: Table, known: Sequence[str]) -> str:
    if "line" not in table:
        return ""
    line: str = table.take("line", str)
    if sorted(fields(line)) != sorted(known) or len(re.findall(r"\{", line)) != len(known):
        raise table.fault(
            "line", f"a text with each of {' '.join(f'{{{n}}}' for n in known)} once", HELP
        )
    return line


def _check_field(paths: Sequence[tuple[Table, str]], way: str) -> None:
    """Paths name ``{split}`` if splits are folders, and only then."""
    for table, path in paths:
        if way == "folders" and "split" not in fields(path):
            raise table.fault(
                "files",
                "{split} in the path, as [splits] has folders",
                "Put it where the folder of the split stands, or split by lists or shares",
            )
        if way != "folders" and "split" in fields(path):
            raise table.fault(
                "files",
                f"no {{split}} in the path, as [splits] has {way}",
                "Call the field otherwise, or split by folders",
            )
