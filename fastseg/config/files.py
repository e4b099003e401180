"""Config files: what a file says over the preset that it, or the command line, names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastseg.config.notations import read_values
from fastseg.config.presets.registry import PRESETS, get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import RENEWED, from_dict, to_dict
from fastseg.errors import ConfigError
from fastseg.pipelines.tools.settings import field_types, misfit, shown
from fastseg.pipelines.tools.unknown import unknown

PRESET = "preset"
"""The field of a file that names the recipe under it."""


def read_config_file(path: Path, preset: str | None = None) -> TrainConfig:
    """The config of a file in TOML, YAML or JSON.

    Args:
        path: the file. Its fields are those of `TrainConfig`, and ``preset``: the recipe that has
            the value of every field that the file does not name. Without a recipe these have the
            defaults of their class, and a file names its stages itself.
        preset: a recipe in place of the file's.

    Raises:
        ConfigError: the file cannot be read, or a field is unknown, named twice, of another type or
            out of range; the message names file, field and value, and what is expected.
    """
    values = read_values(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name} must be an object, got {shown(values)}")
    values = dict(values)
    known = [PRESET, *RENEWED, *field_types(TrainConfig)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{path.name}: {unknown('field', name, known)}")
    own = values.pop(PRESET, None)
    named = own if preset is None else preset
    if named is not None:
        values = over(to_dict(_recipe(path, named, values)), values)
    config: TrainConfig = from_dict(TrainConfig, values, path.name)
    return config


def _recipe(path: Path, name: Any, values: Mapping[str, Any]) -> TrainConfig:
    """The recipe under the values of a file, which are of the same method."""
    if expected := misfit(str, name):
        raise ConfigError(f"{path.name}.{PRESET} must be {expected}, got {shown(name)}")
    if name not in PRESETS:
        raise ConfigError(f"{path.name}: {unknown(PRESET, name, PRESETS)}")
    recipe = get_preset(name)
    method = values.get("method", recipe.method)
    if method != recipe.method:
        raise ConfigError(
            f"{path.name}.method is {shown(method)}, and the preset {name} is of the method "
            f"{recipe.method}: name a preset of the same method"
        )
    return recipe


def over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``base`` with those of ``changes`` over them, group by group."""
    merged = dict(base)
    for name, value in changes.items():
        old: Any = merged.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[name] = over(old, value) if both else value
    return merged
