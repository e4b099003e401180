"""Writing a training state by all processes: complete under its name, or absent.

    rank 0 makes a temporary folder -> every rank writes its files there, and waits for the disk
    -> rank 0 writes layout, state and manifest of hashes, and renames the folder

Between two steps the ranks tell each other how they fared, so that an error of one is an error of
all, and the folder gets its name only if every file is on the disk. A process that dies leaves the
temporary folder at most, which the next start removes.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastseg.checkpoint.intact import MANIFEST, STATE, file_digest
from fastseg.checkpoint.layout import LAYOUT, Layout
from fastseg.checkpoint.tensor_file import write_tensors
from fastseg.distributed.ranks import Ranks
from fastseg.errors import CheckpointError
from fastseg.pipelines.tools.whole_files import commit, remove, sync

_MARGIN = 2**20
"""Bytes that a state may need beside its tensors: headers, JSON, and what a file system rounds."""


@dataclass(frozen=True)
class StateToWrite:
    """A training state in memory.

    Attributes:
        folder: folder that it gets.
        files: this rank's tensors by file and name; nothing else may change them meanwhile.
        layout: the pieces of all ranks.
        text: content of ``state.json``.
        copied: event of a GPU after which the tensors are there; None if they are.
    """

    folder: Path
    files: Mapping[str, dict[str, Tensor]]
    layout: Layout
    text: str
    copied: torch.cuda.Event | None = None


def write_state(state: StateToWrite, ranks: Ranks, committed: Callable[[], None]) -> None:
    """Write a state; all ranks call, each in one thread at a time.

    Args:
        state: what to write.
        ranks: the processes that write it.
        committed: called on rank 0 once the state has its name.

    Raises:
        OSError: a file of any rank cannot be written; it names the file.
        CheckpointError: there is no room.
    """
    partial = state.folder.with_name(f"{state.folder.name}.partial")

    def prepare() -> None:
        if reason := remove(partial):
            raise CheckpointError(f"cannot remove what a killed run has left: {reason}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        require_room(state.folder, sum(state.layout.sizes))
        partial.mkdir()

    def write() -> dict[str, Any]:
        if state.copied is not None:
            state.copied.synchronize()
        for name, tensors in state.files.items():
            write_tensors(tensors, partial / name)
            sync(partial / name)
        digests = {name: file_digest(partial / name) for name in state.files}
        return {"digests": digests, "layout": _digest(state.layout)}

    def finish(written: list[dict[str, Any]]) -> None:
        if any(row["layout"] != written[0]["layout"] for row in written):
            raise CheckpointError(f"{state.folder}: the processes hold other tensors than rank 0")
        manifest = {name: digest for row in written for name, digest in row["digests"].items()}
        texts = {STATE: state.text}
        if state.layout.world > 1:
            texts[LAYOUT] = json.dumps(state.layout.content())
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
            manifest[name] = file_digest(partial / name)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for name in (*texts, MANIFEST):
            sync(partial / name)
        if reason := remove(state.folder):
            raise CheckpointError(f"cannot replace a state of the same step: {reason}")
        commit(partial, state.folder)
        committed()

    try:
        _on_all(ranks, partial, prepare if ranks.is_first else None)
        written = _on_all(ranks, partial, write)
        _on_all(ranks, partial, (lambda: finish(written)) if ranks.is_first else None)
    finally:
        if ranks.is_first:
            remove(partial)


def require_room(folder: Path, size: int) -> int:
    """Refuse to begin a state that the disk has no room for.

    Args:
        folder: folder that the state gets; those above it need not exist.
        size: bytes of its tensors.

    Returns:
        Bytes that are free.

    Raises:
        CheckpointError: it names both numbers.
    """
    free = shutil.disk_usage(next(path for path in folder.parents if path.exists())).free
    if free < size + _MARGIN:
        raise CheckpointError(
            f"no room for the training state {folder}: it needs {in_words(size + _MARGIN)} and "
            f"{in_words(free)} are free; make room, or choose another disk with --out; the same "
            "command continues"
        )
    return free


def in_words(size: float) -> str:
    """Bytes for people."""
    if size < 1000:
        return f"{size:.0f} bytes"
    power = min(int(math.log10(size) / 3), 4)
    return f"{size / 1000**power:.1f} {'kMGT'[power - 1]}B"


def _on_all(ranks: Ranks, place: Path, task: Callable[[], Any] | None) -> list[Any]:
    """Run a task, or none, and return what the tasks of all ranks have returned.

    An error of any of them is raised on all.
    """
    own: Exception | None = None
    outcome: dict[str, Any] = {"value": None}
    try:
        if task is not None:
            outcome["value"] = task()
    except OSError as error:
        # a full or broken disk is often reported without a name
        own = OSError(error.errno, error.strerror or str(error), str(error.filename or place))
        outcome["system"] = own.errno, own.strerror, own.filename
    except Exception as error:
        own = error
        told = str(error) if isinstance(error, CheckpointError) else f"{place}: {error!r}"
        outcome["message"] = told
    outcomes = ranks.exchange(outcome, ranks.background)
    if own is not None:
        raise own
    for other in outcomes:
        if "system" in other:
            raise OSError(*other["system"])
        if "message" in other:
            raise CheckpointError(other["message"])
    return [row["value"] for row in outcomes]


def _digest(layout: Layout) -> str:
    return hashlib.sha256(json.dumps(layout.tensors, sort_keys=True).encode()).hexdigest()
