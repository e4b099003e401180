"""Options of a command: over a preset or a run's config, said once by all processes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from fastseg.cli.places import check_places
from fastseg.config.described import put_description_back, set_description_aside
from fastseg.config.presets.registry import PRESETS, get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import read_config
from fastseg.errors import ConfigError
from fastseg.pipelines.tools.settings import as_path


def speaks() -> bool:
    """True if this process speaks for all before the processes have met."""
    return os.environ.get("RANK", "0") in ("", "0")


PATHS = ConstructorRegistry()
"""Within it, tyro expands ``~`` in paths, which a shell does not behind ``=``, and refuses ''."""


@PATHS.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: as_path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def parse(kind: type[Any], **options: Any) -> Any:
    """``tyro.cli``; of several processes, which all get the same arguments, rank 0 speaks."""
    with PATHS:
        if speaks():
            return tyro.cli(kind, **options)
        nothing = io.StringIO()
        with redirect_stdout(nothing), redirect_stderr(nothing):
            return tyro.cli(kind, **options)


def parse_config(program: str, description: str, arguments: Sequence[str] | None) -> TrainConfig:
    """A `TrainConfig` from ``--preset NAME`` or ``--config FILE`` and any field behind it.

    Raises:
        ConfigError: the preset is unknown, or a file or folder cannot serve.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="demo")
    first.add_argument("--config")
    known, rest = first.parse_known_args(arguments)
    base = get_preset(known.preset) if known.config is None else _config_file(known.config)
    note = (
        f"{description}\n\n--preset NAME chooses the recipe whose fields are listed here with its "
        f"values: {', '.join(PRESETS)} (default: demo). --config FILE takes the config.json of "
        "a run instead."
    )
    config: TrainConfig = parse(
        TrainConfig, prog=program, description=note, default=set_description_aside(base), args=rest
    )
    config = put_description_back(config, base)
    check_places(config)
    return config


def _config_file(text: str) -> TrainConfig:
    try:
        return read_config(as_path(text))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--config: {error}") from None
