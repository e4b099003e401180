"""What the commands share: parsing over a preset, and errors as one message instead of a trace."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

import torch
import tyro

from fastseg.config import TrainConfig, read_config
from fastseg.errors import CheckpointError, ConfigError
from fastseg.pipelines import DataError
from fastseg.presets import PRESETS, get_preset

BAD_INPUT, OUT_OF_MEMORY = 2, 75


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Turn the errors that a user can cause into a message on standard error and an exit code."""

    @wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except (CheckpointError, ConfigError, DataError) as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT
        except torch.OutOfMemoryError as error:
            print(
                f"error: out of memory ({str(error).splitlines()[0]})\n"
                "Lower --data.batch-size or --data.size, or use --precision bf16. "
                "The same command then continues from the last checkpoint.",
                file=sys.stderr,
            )
            return OUT_OF_MEMORY
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped


def parse_config(program: str, description: str, arguments: Sequence[str] | None) -> TrainConfig:
    """A `TrainConfig` from ``--preset NAME`` or ``--config FILE`` and any field behind it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="demo")
    first.add_argument("--config", type=Path)
    known, rest = first.parse_known_args(arguments)
    base = read_config(known.config) if known.config else get_preset(known.preset)
    note = (
        f"{description}\n\n--preset NAME chooses the recipe whose fields are listed here with its "
        f"values: {', '.join(PRESETS)} (default: demo). --config FILE takes the config.json of "
        "a run instead."
    )
    config: TrainConfig = tyro.cli(
        TrainConfig, prog=program, description=note, default=base, args=rest
    )
    return config
