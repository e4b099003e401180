"""Render the whole set: in parallel, resumable, with the same files however it is run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path

from tqdm import tqdm

from .config import SPLITS, SyntheticConfig
from .manifest import close_folder, open_folder
from .plan import FOLDERS, Frame, plan
from .writer import Record, read_sample, write_sample

if sys.platform != "win32":
    import fcntl

_CHUNK = 8
"""Frames per task: short enough that an interrupt is answered within a second."""
_POOL_FROM = 32
"""With fewer frames than this to render, starting processes costs more than it saves."""


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
    # in a pipe every refresh is a line of its own
    pause = 0.1 if sys.stderr.isatty() else 5.0
    with tqdm(
        total=len(frames), unit="frame", desc="synthetic", disable=not progress, mininterval=pause
    ) as bar:
        for frame in frames:
            record = read_sample(config.out, frame)
            if record is None:
                missing.append(frame)
            else:
                records[frame] = record
                bar.update()
        for frame, record in _render(missing, config):
            records[frame] = record
            bar.update()
    return records


def _render(frames: list[Frame], config: SyntheticConfig) -> Iterator[tuple[Frame, Record]]:
    processes = min(config.processes, len(frames) // _CHUNK)
    if processes < 2 or len(frames) < _POOL_FROM:
        for frame in frames:
            yield frame, write_sample(config.out, frame, config)
        return
    # spawn: a forked child of a process with threads may hang
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        with _interrupts_ignored():
            tasks: list[Future[list[tuple[Frame, Record]]]] = [
                pool.submit(_render_chunk, frames[i : i + _CHUNK], config)
                for i in range(0, len(frames), _CHUNK)
            ]
        for task in as_completed(tasks):
            yield from task.result()
    finally:
        # running chunks end and their frames are kept; waiting leaves no process behind
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start children that ignore an interrupt from the keyboard, also while they still import.

    It reaches the whole process group; the parent alone answers it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _render_chunk(frames: list[Frame], config: SyntheticConfig) -> list[tuple[Frame, Record]]:
    return [(frame, write_sample(config.out, frame, config)) for frame in frames]


def _start_worker() -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent dies without saying so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
