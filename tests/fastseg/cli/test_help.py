"""Errors lead to an entry of docs/troubleshooting.md that is there."""

import ast
import errno
import re
from pathlib import Path

import pytest
import torch

from fastseg.cli import help
from fastseg.cli.command import explain
from fastseg.errors import CheckpointError, ConfigError
from fastseg.pipelines import DataError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / help.PAGE).read_text(encoding="utf-8")
ANCHORS = {
    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    for heading in re.findall(r"^### (.+)$", PAGE, re.M)
}


def given_with_errors():
    """``(place, anchor)`` of every ConfigError that names its entry."""
    for path in sorted((ROOT / "fastseg").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "id", "")
            for keyword in getattr(node, "keywords", []):
                if name == "ConfigError" and keyword.arg == "help":
                    yield f"{path.name}:{node.lineno}", ast.literal_eval(keyword.value)


def test_every_anchor_that_code_names_is_a_heading():
    given = dict(given_with_errors())
    assert len(given) >= 4
    fixed = {help.COMPILE, help.LOST_PROCESS, help.FULL_DISK, help.MEMORY, help.WEIGHTS}
    assert {*given.values(), *fixed, *help.BY_KIND.values()} - ANCHORS == set()


@pytest.mark.parametrize(
    ("error", "anchor"),
    [
        (DataError("a", "missing"), "files-that-are-missing"),
        (DataError("a", "label"), "label-values"),
        (DataError("a"), None),
        (CheckpointError("a"), "weights-that-do-not-fit"),
        (ConfigError("a", help="settings-that-changed"), "settings-that-changed"),
        (ConfigError("a"), None),
        (torch.OutOfMemoryError("a"), "out-of-memory"),
        (OSError(errno.ENOSPC, "full", "file"), "disk-full"),
        (OSError(errno.ENOENT, "gone", "file"), None),
        (RuntimeError("DataLoader worker is killed by signal: Killed."), "worker-processes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_message_ends_with_its_entry(error, anchor):
    lines = explain(error)[1].splitlines()
    entries = [line for line in lines if line.startswith("see docs/")]
    assert entries == ([f"see {help.PAGE}#{anchor}"] if anchor else [])
    assert not anchor or lines[-1] == entries[0]
