"""Where the documentation says more about an error: an anchor of the page of troubleshooting."""

from __future__ import annotations

from fastseg.errors import CheckpointError, ConfigError
from fastseg.pipelines import DataError

PAGE = "docs/troubleshooting.md"
COMPILE, LOST_PROCESS, FULL_DISK, MEMORY = (
    "torchcompile-fails",
    "a-process-was-lost",
    "disk-full",
    "out-of-memory",
)
WEIGHTS = "weights-that-do-not-fit"
BY_KIND = {
    "damaged": "files-that-are-damaged",
    "depth": "bit-depth-and-palettes",
    "format": "bit-depth-and-palettes",
    "label": "label-values",
    "memory": "worker-processes",
    "missing": "files-that-are-missing",
    "size": "sizes-that-differ",
}
"""Anchors of a `DataError`, by its kind."""


def see(anchor: str | None) -> str:
    """The last line of a message, which names the entry; nothing without one."""
    return f"\nsee {PAGE}#{anchor}" if anchor else ""


def anchor_of(error: CheckpointError | ConfigError | DataError) -> str | None:
    """The entry that has more to say on an error that a user can cause; None: there is none."""
    if isinstance(error, DataError):
        return BY_KIND.get(error.kind)
    return WEIGHTS if isinstance(error, CheckpointError) else error.help
