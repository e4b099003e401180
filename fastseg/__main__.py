"""The command ``fastseg``, and ``python -m fastseg``: every command under one name.

A command is imported when it is named: help appears at once, and without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from fastseg import __version__
from fastseg.pipelines.tools.unknown import unknown

COMMANDS = {
    "train": ("fastseg.train", "train all stages, score every sensor subset, write a report"),
    "evaluate": ("fastseg.evaluate", "score weights: every sensor subset, or by protocols"),
    "predict": ("fastseg.predict", "label maps of files, with any sensor missing"),
    "export": ("fastseg.export", "a network as .pt2 and ONNX, checked against itself"),
    "report": ("fastseg.report.__main__", "write the page of a run anew, finished or not"),
    "data": ("fastseg.data", "check, measure, show, pack, fetch and render data sets"),
    "models": ("fastseg.models.__main__", "list the backbones and their costs; convert weights"),
    "doctor": ("fastseg.doctor", "what is installed, and what is used instead of the rest"),
    "completion": ("fastseg.completion", "the options for the Tab key of bash or zsh"),
}
"""Module of each command, whose ``main`` takes its arguments, and what it does."""

BAD_INPUT = 2
"""Exit code of a wrong option, as in `fastseg.cli.command`, which imports torch."""

HELP = """\
fastseg {version}: train segmenters on several sensors that keep working when some fail.

usage: fastseg COMMAND [options]

{commands}

fastseg COMMAND --help has the options of a command with their values; python -m
fastseg.COMMAND is the same command. Nothing at hand? fastseg train renders a small
data set and trains on it in minutes. Of your own:
  fastseg train --preset deliver_robustseg_b0 --data.root DIR
  fastseg train --config my.toml
  fastseg evaluate --checkpoint runs/demo
  fastseg predict --checkpoint runs/demo --folder DIR

--quiet behind any command leaves out progress and details, no warning, no result.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. Without one, print the help."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
        print(HELP.format(version=__version__, commands="\n".join(lines)), end="")
        return 0
    name, *rest = words
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"error: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        return BAD_INPUT
    code: int = import_module(COMMANDS[name][0]).main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
