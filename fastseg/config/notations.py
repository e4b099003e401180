"""TOML, YAML and JSON: text to nested values and back, with nothing read as what it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from fastseg.errors import ConfigError
from fastseg.pipelines.tools.settings import shown
from fastseg.pipelines.tools.toml_files import toml_values

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_SCALARS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    # 010 is 8 to some and 10 to others, and text here
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    "merge": (re.compile(r"<<$"), ["<"]),
}
"""What plain text is in YAML 1.2's core schema: ``1e-3`` a number; ``no``, ``off``, dates text."""


_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_MOST_VALUES = 100_000
"""Values of a config file, those behind aliases counted wherever they stand."""
_TOO_MANY = f"it stands for more than {_MOST_VALUES} values; write them without aliases"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Values of YAML 1.2, under names that are text and occur once; nothing of other types."""

    # filled below
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        kind: yaml.SafeLoader.yaml_constructors[kind]
        for kind in (None, *(_TAG + name for name in _KINDS))
    }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put merged mappings in; of mappings that merge one another these grow without end."""
        super().flatten_mapping(node)
        if len(node.value) > _MOST_VALUES:
            raise ValueError(_TOO_MANY)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == _TAG + "merge":
                continue
            if key.tag != _TAG + "str" or not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a name in line {line} is not text: put it into quotes")
            if key.value in seen:
                raise ValueError(f"the field {shown(key.value)} occurs twice, again in line {line}")
            seen.add(key.value)
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Lists in one line; text that any reader might take for something else in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
_Dumper.add_implicit_resolver(_TAG + "float", *_SCALARS["float"])
_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence(_TAG + "seq", value, flow_style=True)
)


def _from_yaml(text: str) -> Any:
    try:
        values = yaml.load(text, _Loader)
        _refuse_many(values)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (KeyError, IndexError) as error:
        # PyYAML's own errors of a scalar whose tag says another type
        raise ValueError(f"a value is not of the type that its tag says ({error})") from None
    # a file of comments alone
    return {} if values is None else values


def _refuse_many(values: Any) -> None:
    """Refuse aliases of aliases: a few lines that stand for billions of values.

    Raises:
        ValueError: there are more values than in any config.
    """
    count, waiting = 0, [values]
    while waiting:
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(_TOO_MANY)
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list):
            waiting.extend(inner)


def _to_yaml(values: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return text


def _from_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which the last of two equal keys would win unseen."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise ValueError(f"the field {shown(twice)} occurs twice")
    return values


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _to_toml(values: Mapping[str, Any]) -> str:
    return "\n".join(_toml_lines(values)).strip() + "\n"


def _toml_lines(values: Mapping[str, Any], place: tuple[str, ...] = ()) -> list[str]:
    """Lines of a table and those in it; TOML has no null, and what is None is left out."""
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    plain = {n: v for n, v in values.items() if n not in tables and v is not None}
    lines = [f"{_toml_name(name)} = {_toml_value(value)}" for name, value in plain.items()]
    if place and (plain or not tables):
        lines = ["", f"[{'.'.join(map(_toml_name, place))}]", *lines]
    for name, table in tables.items():
        lines += _toml_lines(table, (*place, name))
    return lines


def _toml_name(name: str) -> str:
    return name if _BARE.fullmatch(name) else _toml_value(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    # the strings of JSON are TOML's but for this control character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


NOTATIONS: dict[str, tuple[Callable[[str], Any], Callable[[Mapping[str, Any]], str]]] = {
    "toml": (toml_values, _to_toml),
    "yaml": (_from_yaml, _to_yaml),
    "json": (_from_json, _to_json),
}
"""Reader and writer of each notation."""

_BY_SUFFIX = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


def render(values: Mapping[str, Any], notation: str) -> str:
    """The text of nested values: dicts, lists, strings, finite numbers, booleans and None.

    Args:
        values: as `fastseg.config.serialise.to_dict` makes them.
        notation: one of `NOTATIONS`. TOML has no null: there what is None is left out.
    """
    return NOTATIONS[notation][1](values)


def read_values(path: Path) -> Any:
    """The values of a file: TOML or YAML by its name (``.toml``, ``.yaml``, ``.yml``), else JSON.

    Raises:
        ConfigError: it cannot be read, is not of its notation, or names a field twice.
    """
    notation = _BY_SUFFIX.get(path.suffix.lower(), "json")
    wanted = "give a config in a .toml, .yaml or .json file, such as the config.json of a run"
    try:
        return NOTATIONS[notation][0](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}: {wanted}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; {wanted}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deep: {wanted}") from None
    except ValueError as error:
        hint = f"; {wanted}" if path.suffix.lower() not in (*_BY_SUFFIX, ".json") else ""
        raise ConfigError(f"{path} is not {notation.upper()}: {error}{hint}") from None
