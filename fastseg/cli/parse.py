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

from fastseg.cli.other_names import OF_RUNS, OF_TRAINING, refuse_others
from fastseg.cli.places import check_places
from fastseg.config.described import put_description_back, set_description_aside
from fastseg.config.files import read_config_file
from fastseg.config.notations import NOTATIONS, render
from fastseg.config.presets.registry import PRESETS, get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import to_dict
from fastseg.errors import ConfigError
from fastseg.pipelines.tools.settings import as_path
from fastseg.pipelines.tools.unknown import unknown


def speaks() -> bool:
    """True if this process speaks for all before the processes have met."""
    return os.environ.get("RANK", "0") in ("", "0")


ON_QUIET = (
    "--quiet, of every command, leaves out progress and details on standard error; warnings, "
    "errors and results stay."
)
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
    options["description"] = f"{options.get('description') or ''}\n\n{ON_QUIET}"
    with PATHS:
        if speaks():
            return tyro.cli(kind, **options)
        nothing = io.StringIO()
        with redirect_stdout(nothing), redirect_stderr(nothing):
            return tyro.cli(kind, **options)


def parse_checkpoint(
    kind: type[Any], prog: str, description: str | None, args: Sequence[str] | None
) -> Any:
    """`parse` of a command that reads a run: its first word may be the checkpoint by itself.

    Raises:
        ConfigError: an option is one of training that the run has decided.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words and not words[0].startswith("-"):
        words.insert(0, "--checkpoint")
    refuse_others(words, OF_RUNS)
    note = f"{description}\n\nThe first word may be the checkpoint: {prog} runs/demo"
    return parse(kind, prog=prog, description=note, args=words)


def parse_config(program: str, description: str, arguments: Sequence[str] | None) -> TrainConfig:
    """A `TrainConfig` from a preset, a file over it, and any field over both.

    With ``--print-config`` the result is printed, and the process ends with exit code 0.

    Raises:
        ConfigError: the preset is unknown, the file of ``--config`` says what cannot be, or a file
            or folder cannot serve.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--config")
    first.add_argument("--print-config", nargs="?", const="toml")
    known, rest = first.parse_known_args(arguments)
    refuse_others(rest, OF_TRAINING)
    if known.print_config not in (None, *NOTATIONS):
        raise ConfigError(f"--print-config: {unknown('notation', known.print_config, NOTATIONS)}")
    if known.config is None:
        base = get_preset(known.preset or "demo")
    else:
        base = _config_file(known.config, known.preset)
    note = (
        f"{description}\n\n--preset NAME chooses the recipe whose fields are listed here with its "
        f"values: {', '.join(PRESETS)} (default: demo). --config FILE takes a TOML, YAML or JSON "
        "file, such as the config.json of a run; it may name its preset. Options win over the "
        "file, the file over the preset. --print-config, or --print-config yaml or json, prints "
        "the config that results as such a file and ends."
    )
    config: TrainConfig = parse(
        TrainConfig, prog=program, description=note, default=set_description_aside(base), args=rest
    )
    config = put_description_back(config, base)
    if known.print_config is not None:
        if speaks():
            print(render(to_dict(config), known.print_config), end="")
        sys.exit(0)
    check_places(config)
    return config


def _config_file(text: str, preset: str | None) -> TrainConfig:
    try:
        return read_config_file(as_path(text), preset)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--config: {error}") from None
