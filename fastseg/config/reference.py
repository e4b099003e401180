"""The page of settings, ``docs/reference/configuration.md``, from the dataclasses of a run."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastseg.config.run import TrainConfig
from fastseg.methods import METHODS, MethodOptions, Stage
from fastseg.pipelines.tools.settings import MOST, Range, field_types

_HEAD = """# Configuration

Every setting of a training run: name, values, default and meaning. The name is that in a
[file](../howto/configure.md); the option is `--` and the name with dashes for underscores, such as
`--data.batch-size` for `data.batch_size`. A [recipe](presets.md) replaces many of the defaults;
`--print-config` prints what a run would have. A value that does not fit is refused by name before
anything is made. [Options](options.md) says where each is defined, and which may change when a run
is continued.

This page is made of the dataclasses by `python -m fastseg.config.reference`; a test compares it.
"""
_STAGES = """## Stages

A stage has the name that its recipe gives it, here `NAME`, in options as well.
"""
_METHODS = """## Methods

Each [method](methods.md) has weights of its loss terms in every stage, and forms of the terms for
the whole run. All methods share these:
"""
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}


def values_of(kind: Any) -> str:
    """The values that an annotation allows, in words."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        ranges = [str(extra) for extra in args[1:] if isinstance(extra, Range) and _limits(extra)]
        return ", ".join([values_of(args[0]), *ranges])
    if origin in (types.UnionType, typing.Union):
        return f"{values_of(args[0])}, or none"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple and args[-1] is Ellipsis:
        return f"any number of: {values_of(args[0])}"
    if origin is tuple:
        return f"{len(args)} of: {values_of(args[0])}"
    return _PLAIN.get(kind, "table")


def _limits(allowed: Range) -> bool:
    return (allowed.low, allowed.high) != (-MOST, MOST) or bool(allowed.multiple)


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default of a field as it is written in an option."""
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"`{' '.join(map(str, value))}`" if isinstance(value, tuple) else f"`{value}`"


def meanings(kind: type[Any]) -> dict[str, str]:
    """The docstring behind each field of a dataclass and of those it is made from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = " ".join(str(text.value).split()).replace("``", "`")
    return found


def rows_of(kind: Any, before: str) -> list[str]:
    """A row for every field that is a value; sections have tables of their own."""
    rows = []
    said, annotations = meanings(kind), field_types(kind)
    for field in dataclasses.fields(kind):
        annotation = annotations[field.name]
        if _is_section(annotation) or typing.get_origin(annotation) is dict:
            continue
        name = f"`{before}{field.name}`"
        cells = [name, values_of(annotation), default_of(field), said.get(field.name, "")]
        escaped = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        rows.append(f"| {' | '.join(escaped)} |")
    return rows


def _table(rows: list[str]) -> str:
    head = ["| name | values | default | meaning |", "|---|---|---|---|"]
    return "\n".join(head + rows) + "\n" if rows else "No settings of its own.\n"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _sections(kind: Any, before: str = "") -> Iterator[str]:
    """Heading and table of every section below a dataclass, in the order of its fields."""
    seen: dict[type[Any], str] = {}
    for name, section in field_types(kind).items():
        # those of methods differ
        if not _is_section(section) or issubclass(section, MethodOptions):
            continue
        place = f"{before}{name}"
        yield f"## `{place}`\n"
        if section in seen:
            yield f"The settings of `{seen[section]}`, with `{place}.` before them.\n"
            continue
        seen[section] = place
        yield (section.__doc__ or "").strip().splitlines()[0].replace("``", "`") + "\n"
        yield _table(rows_of(section, f"{place}."))
        yield from _sections(section, f"{place}.")


def page() -> str:
    """The page: a table for the run, its sections, its stages and every method."""
    weights, forms = "stages.NAME.losses.", "losses."
    methods = {
        name: rows_of(method.weights, weights) + rows_of(method.options_type, forms)
        for name, method in METHODS.items()
    }
    first, *others = methods.values()
    shared = [row for row in first if all(row in rows for rows in others)]
    parts = [_HEAD, "## The run\n", _table(rows_of(TrainConfig, "")), *_sections(TrainConfig)]
    parts += [_STAGES, _table(rows_of(Stage, "stages.NAME.")), _METHODS, _table(shared)]
    for name, rows in methods.items():
        parts += [f"### `{name}`\n", _table([row for row in rows if row not in shared])]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
