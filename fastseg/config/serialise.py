"""The nested values of a config, and the way back with every field checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastseg.config.notations import read_values
from fastseg.config.run import TrainConfig
from fastseg.errors import ConfigError
from fastseg.methods import METHODS, LossWeights, Method, MethodOptions
from fastseg.methods.robustseg import RobustSeg
from fastseg.pipelines.tools.settings import as_path, field_types, misfit, shown
from fastseg.pipelines.tools.unknown import unknown

RENEWED = ("tensorboard",)
"""Fields of before, which are read as what they are today."""


def to_dict(config: Any) -> Any:
    """The form of a config on disk: nested dicts, lists, strings and numbers.

    Numbers are as declared, so that equal configs have one form: 0 in a field of floats is 0.0.
    """
    if dataclasses.is_dataclass(config):
        owner: Any = type(config)
        kinds = field_types(owner)
        return {n: to_dict(_as_declared(k, getattr(config, n))) for n, k in kinds.items()}
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(
    kind: Any, values: Any, where: str = "config", method: type[Method] | None = None
) -> Any:
    """Inverse of `to_dict`: build ``kind`` and check it. In paths ``~`` is expanded.

    Loss weights and options are those of ``method``, which a run names itself.

    Raises:
        ConfigError: a field is unknown, or its value is of another type or out of range; the
            message names the field, the value and what is expected.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _settings(kind, values, where, method)
    if origin is dict and isinstance(values, dict):
        return {k: from_dict(args[1], x, f"{where}.{k}", method) for k, x in values.items()}
    if origin in (types.UnionType, typing.Union):
        return None if values is None else from_dict(args[0], values, where)
    value = tuple(values) if origin is tuple and isinstance(values, list) else values
    if kind is Path and isinstance(values, str):
        try:
            value = as_path(values)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
    if expected := misfit(kind, value):
        raise ConfigError(f"{where} must be {expected}, got {shown(values)}")
    return _as_declared(kind, value)


def _settings(kind: Any, values: Any, where: str, method: type[Method] | None) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be an object, got {shown(values)}")
    if kind is TrainConfig:
        values = _renewed(values, where)
        method = _method_in(values, where)
    if method is not None:
        kind = {MethodOptions: method.options_type, LossWeights: method.weights}.get(kind, kind)
    known = field_types(kind)
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}: {unknown('field', name, known)}")
    parts = {n: from_dict(known[n], x, f"{where}.{n}", method) for n, x in values.items()}
    try:
        return kind(**parts)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _renewed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values whose fields have the names of today."""
    renewed = dict(values)
    wanted = renewed.pop("tensorboard", False)
    if expected := misfit(bool, wanted):
        raise ConfigError(f"{where}.tensorboard must be {expected}, got {shown(wanted)}")
    known = renewed.get("trackers", [])
    if wanted and isinstance(known, list) and "tensorboard" not in known:
        renewed["trackers"] = [*known, "tensorboard"]
    return renewed


def _method_in(values: Mapping[str, Any], where: str) -> type[Method]:
    """The method that a run names; those of before there were several do not."""
    name = values.get("method", RobustSeg.name)
    if expected := misfit(str, name):
        raise ConfigError(f"{where}.method must be {expected}, got {shown(name)}")
    if name not in METHODS:
        raise ConfigError(f"{where}: {unknown('method', name, METHODS)}")
    return METHODS[name]


def _as_declared(kind: Any, value: Any) -> Any:
    """Whole numbers of JSON where a field is a float, as a float."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _as_declared(args[0], value)
    if origin is tuple:
        return tuple(_as_declared(args[0], item) for item in value)
    return float(value) if kind is float else value


def read_config(path: Path) -> TrainConfig:
    """Read the ``config.json`` of a run, or the same in another notation, see `read_values`.

    Raises:
        ConfigError: it cannot be read, is not of its notation, or holds what `from_dict` refuses.
    """
    config: TrainConfig = from_dict(TrainConfig, read_values(path), f"{path}")
    return config
