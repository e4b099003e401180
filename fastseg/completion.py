"""``fastseg completion bash``: a script by which a shell completes commands and options."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, make_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

from fastseg import data
from fastseg.cli.command import command
from fastseg.cli.parse import PATHS, parse
from fastseg.config.notations import NOTATIONS
from fastseg.config.presets.registry import PRESETS, get_preset
from fastseg.config.run import TrainConfig
from fastseg.doctor import DoctorConfig
from fastseg.evaluation.from_weights import EvaluateConfig
from fastseg.exporting.options import ExportConfig
from fastseg.models.__main__ import ConvertConfig, ModelsConfig
from fastseg.prediction.options import PredictConfig
from fastseg.report.__main__ import ReportConfig

Shell = Literal["bash", "zsh"]


@dataclass(frozen=True)
class CompletionConfig:
    """The shell. Options of stages are those of the preset demo.

    bash reads the script from ~/.local/share/bash-completion/completions/fastseg, zsh as _fastseg
    from a folder of $fpath. Write it anew after an update.
    """

    shell: Positional[Shell]
    """Shell that the script is for."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the script; the exit code is 0."""
    options: CompletionConfig = parse(
        CompletionConfig, prog="fastseg completion", description=__doc__, args=arguments
    )
    print(script(options.shell))
    return 0


def script(shell: Shell) -> str:
    """The script for a shell: all commands with their options and the values that these may have.

    It runs Python's standard library alone at each press of the key.
    """
    text = io.StringIO()
    with PATHS, redirect_stdout(text), suppress(SystemExit), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate subcommand name", UserWarning)
        tyro.cli(
            _commands(),
            prog="fastseg",
            args=["--tyro-write-completion", shell, "-"],
            config=(OmitSubcommandPrefixes,),
        )
    # names of folders get a slash, and a word that is no option may be a file
    return text.getvalue().replace("complete -F ", "complete -o filenames -o default -F ")


def _commands() -> Any:
    """A type whose sub-commands are those of ``fastseg``."""
    # what training reads before the fields of its config
    before = [
        ("preset", Literal[tuple(PRESETS)], field(default="demo")),
        ("config", Path | None, field(default=None)),
        ("print_config", Literal[tuple(NOTATIONS)] | None, field(default=None)),
    ]
    train: Any = make_dataclass("Train", before, bases=(TrainConfig,), frozen=True)
    kinds = {
        "evaluate": EvaluateConfig,
        "predict": PredictConfig,
        "export": ExportConfig,
        "report": ReportConfig,
        "data": make_dataclass("Data", [("what", reduce(or_, _named(data.COMMANDS)))]),
        "models": _with_command(ModelsConfig, "convert", ConvertConfig),
        "doctor": DoctorConfig,
        "completion": CompletionConfig,
    }
    demo = train(**vars(get_preset("demo")))
    trains: Any = Annotated[train, subcommand(name="train", default=demo)]
    return reduce(or_, (trains, *_named(kinds)))


def _with_command(listing: Any, name: str, kind: Any) -> Any:
    """The options of a command that has another one below it."""
    below: Any = Annotated[kind, subcommand(name=name)]
    # tyro sees a command only where there are several; it warns of equal ones
    what = below | Annotated[kind, subcommand(name=name)]
    return make_dataclass(
        listing.__name__, [("what", what)], bases=(listing,), frozen=True, kw_only=True
    )


def _named(kinds: Mapping[str, Any]) -> list[Any]:
    return [Annotated[kind, subcommand(name=name)] for name, kind in kinds.items()]


if __name__ == "__main__":
    sys.exit(main())
