"""Paths with fields in braces, checked before anything is looked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from .table import HELP, Table

_FIELD = re.compile(r"\{(\w*)\}")
_TAKEN = ("folder", "tag", "suffix")
"""Fields that paths of the catalogue give a meaning of their own."""

IMAGES, ARRAYS = (".png", ".jpg", ".jpeg"), (".npy", ".npz")


def take_template(table: Table, suffixes: Sequence[str]) -> str:
    """The key ``files``: a path under the root whose fields stand for what differs by sample.

    Raises:
        DataError: it leads out of the root, has no field, or a suffix that no decoder reads.
    """
    text: str = table.take("files", str)
    check_inside(table, "files", text)
    names = _FIELD.findall(text)
    rest = _FIELD.sub("", text)
    if (
        "{" in rest
        or "}" in rest
        or "*" in rest
        or "" in names
        or any(n[0].isdigit() for n in names)
    ):
        raise table.fault("files", "a path with fields such as {name}", "Give each field a name")
    for name in names:
        if name in _TAKEN:
            raise table.fault("files", "other fields", f"Call {{{name}}} otherwise")
        if name != "split" and names.count(name) > 1:
            raise table.fault(
                "files", f"{{{name}}} once", "A field is anything within one part of a path"
            )
    if re.search(r"\}\{", text):
        raise table.fault("files", "something between two fields", "Make one field of them")
    if set(names) <= {"split"}:
        raise table.fault(
            "files",
            "a field that tells samples apart",
            "Put {name} where the file names differ, as in images/{name}.png",
        )
    if PurePosixPath(text).suffix.lower() not in suffixes:
        raise table.fault("files", f"a path that ends with {', '.join(suffixes)}")
    return text


def check_inside(table: Table, key: str, text: str) -> None:
    """Refuse a path that is not one below the root.

    Raises:
        DataError: it starts at the root of the system, goes up, or has empty parts.
    """
    parts = text.split("/")
    if "\\" in text or "\0" in text or not all(part not in ("", ".", "..") for part in parts):
        raise table.fault(
            key,
            "a path below --data.root, its parts separated by /",
            "Leave out the start that --data.root names, and move files that lie elsewhere",
        )


def fields(template: str) -> tuple[str, ...]:
    """Names of the fields of a path, in order, each once."""
    return tuple(dict.fromkeys(_FIELD.findall(template)))


def folder_of(template: str) -> str:
    """The folders before the first field; empty if the first part has one."""
    parts = template.split("/")[:-1]
    first = next((i for i, part in enumerate(parts) if "{" in part), len(parts))
    return "/".join(parts[:first])


def check_same_fields(tables: Sequence[tuple[Table, str]]) -> None:
    """Refuse paths whose fields differ: they could not be matched.

    Raises:
        DataError: one has other fields than the first.
    """
    (_, first), *others = tables
    for table, template in others:
        if set(fields(template)) != set(fields(first)):
            wanted = " ".join(f"{{{name}}}" for name in fields(first))
            raise table.fault(
                "files",
                f"the fields of {first!r}: {wanted}",
                f"Files of a sample are found by equal fields. {HELP}",
            )
