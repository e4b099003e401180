"""Render the whole set: in parallel, resumable, with the same files however it is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..tools.process_pool import each
from ..tools.progress import Progress
from .config import SPLITS, SyntheticConfig
from .manifest import close_folder, open_folder
from .plan import FOLDERS, Frame, plan
from .writer import Record, read_sample, write_sample

if sys.platform != "win32":
    import fcntl


def generate(config: SyntheticConfig, progress: bool = True) -> Path:
    """Make the data set that ``config`` describes, or complete it, or find it complete.

    Frames that are there are kept, after their files have been decoded. The manifest is written
    last; a folder with a manifest of the same settings and all files present is left as it is.
    Several processes may ask for the same set: one renders, the others wait for it.

    Args:
        config: what and where.
        progress: show a bar.

    Returns:
        ``config.out``.

    Raises:
        DataError: ``out`` is a file, holds other data, or a set of other settings.
        KeyboardInterrupt: after the workers have stopped; the folder can be continued.
    """
    if open_folder(config) and not _missing(config):
        return config.out
    with _only_writer(config.out):
        # another process may have finished the set while this one waited
        if not (open_folder(config) and not _missing(config)):
            close_folder(config, _complete(config, progress))
    return config.out


def _frames(config: SyntheticConfig) -> list[Frame]:
    return [frame for split in SPLITS for frame in plan(split, config.counts[split])]


def _missing(config: SyntheticConfig) -> bool:
    return any(
        not os.path.exists(config.out / frame.path(folder))
        for frame in _frames(config)
        for folder in FOLDERS
    )


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process and leaves no file behind."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _complete(config: SyntheticConfig, progress: bool) -> dict[Frame, Record]:
    frames = _frames(config)
    records: dict[Frame, Record] = {}
    missing: list[Frame] = []
    with Progress("synthetic", len(frames), shown=progress, unit="frame") as shown:
        for frame in frames:
            record = read_sample(config.out, frame)
            if record is None:
                missing.append(frame)
            else:
                records[frame] = record
                shown.advance()
        for frame, record in each(partial(_render, config), missing, config.workers):
            records[frame] = record
            shown.advance()
    return records


def _render(config: SyntheticConfig, frame: Frame) -> tuple[Frame, Record]:
    return frame, write_sample(config.out, frame, config)
