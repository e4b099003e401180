"""A guessed description as the text of a TOML file, with comments for who edits it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .guessing import Guess


def toml_text(guess: Guess, root: str) -> str:
    """The text of the file.

    Args:
        guess: what was found.
        root: the folder, for the comment at its head.
    """
    values = guess.values
    lines = [
        f"# Guessed by python -m fastseg.data describe --root {json.dumps(root)}",
        "# docs/reference/data-set-files.md explains every key. What was found:",
        *(f"#   {line}" for line in guess.said),
        "# Look at:",
        *(f"#   {line}" for line in guess.edit),
    ]
    for sensor in values["sensors"]:
        lines += ["", "[[sensors]]", *_pairs(sensor)]
        lines.append("# mean and std were measured on some files")
        if sensor["kind"] == "camera":
            lines.append('# with weights that ImageNet has trained: mean and std = "imagenet"')
    lines += ["", "[label]", *_pairs(values["label"])]
    for each in values["classes"]:
        lines += ["", "[[classes]]", *_pairs(each)]
    lines += ["", "[splits]", *_pairs(values["splits"])]
    return "\n".join(lines) + "\n"


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # the strings of JSON are strings of TOML
    return json.dumps(value)
