"""The content of a description to checked dataclasses; what is left open is filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from typing import Any, Literal

from ...errors import DataError
from ..spec import LabelCoding
from .classes import take_classes, take_ignored
from .description import Description, LabelText
from .sensors import take_sensors
from .splits import take_splits
from .table import Table
from .templates import IMAGES, check_same_fields, fields, take_template

NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
"""What data sets, sensors and splits may be called: a part of a file's name."""

_TOP = tuple(field.name for field in fields_of(Description))
_LABEL = tuple(field.name for field in fields_of(LabelText))


def read_description(values: Mapping[str, Any], file: str, stem: str) -> Description:
    """Check the content of a TOML file, or the plain form that a run keeps.

    Args:
        values: tables, lists and values.
        file: name of the file for messages.
        stem: name of the data set if the file gives none.

    Raises:
        DataError: a key is unknown, missing or has a value that cannot be used; the message has
            file, key, value, what is expected and the next step.
    """
    top = Table(dict(values), file, "top level", _TOP)
    name: str = top.take("name", str, stem)
    if not NAME.fullmatch(name):
        raise DataError(
            f"{file}, top level: name = {name!r}; expected letters, digits, - _ and . (without the "
            "key it is the name of the file). Checkpoints and folders are called so: rename it",
            "toml",
        )
    sensors, paths = take_sensors(top, NAME)
    label = Table(top.take("label", object), file, "[label]", _LABEL)
    template = take_template(label, IMAGES[:1])
    paths.append((label, template))
    check_same_fields(paths)
    coding: LabelCoding = label.take("coding", LabelCoding, "ids")
    classes = take_classes(top, coding)
    splits = take_splits(top, paths, NAME)
    return Description(
        name=name,
        sensors=sensors,
        label=LabelText(
            files=template,
            coding=coding,
            ignored=take_ignored(label, coding, classes),
            others=label.take("others", Literal["error", "ignored"], "error"),
        ),
        classes=classes,
        splits=splits,
        conditions=_take_conditions(top, fields(template)),
    )


def _take_conditions(top: Table, known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Values of the fields that name conditions, such as the weather."""
    if "conditions" not in top:
        return {}
    table = Table(
        top.raw("conditions"), top.file, "[conditions]", [name for name in known if name != "split"]
    )
    found: dict[str, tuple[str, ...]] = {
        name: table.take(name, tuple[str, ...]) for name in known if name in table
    }
    values = [value for part in found.values() for value in part]
    for name, part in found.items():
        for value in part:
            if "/" in value or values.count(value) > 1:
                raise table.fault(name, f"{value!r} once, and without /", "Each is a part of paths")
    return found
