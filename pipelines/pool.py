"""Work that is cut into independent pieces: in processes that die with their parent, with a bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 8
"""Items per task: short enough that an interrupt is answered within a second or two."""
_POOL_FROM = 32
"""With fewer items than this, starting processes costs more than it saves."""


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int = 0
) -> Iterator[Result]:
    """``function(item)`` of every item, as they are done: in any order.

    Args:
        function: can be pickled, such as a function of a module or a ``partial`` of one.
        items: can be pickled, too.
        processes: how many at most; 0 for one per CPU. Few items are done in this process.

    Raises:
        KeyboardInterrupt: after the processes have finished their pieces and ended.
    """
    processes = min(processes or usable_cpus(), len(items) // _CHUNK)
    if processes < 2 or len(items) < _POOL_FROM:
        yield from map(function, items)
        return
    # spawn: a forked child of a process with threads may hang
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        with _interrupts_ignored():
            tasks = [
                pool.submit(_chunk, function, items[i : i + _CHUNK])
                for i in range(0, len(items), _CHUNK)
            ]
        for task in as_completed(tasks):
            yield from task.result()
    finally:
        # running pieces end and their files are kept; waiting leaves no process behind
        pool.shutdown(wait=True, cancel_futures=True)


def bar(label: str, unit: str, total: int, shown: bool = True) -> tqdm[Any]:
    """A progress bar on standard error, with a line every five seconds where that is a pipe."""
    pause = 0.1 if sys.stderr.isatty() else 5.0
    return tqdm(total=total, unit=unit, desc=label, disable=not shown, mininterval=pause)


def _chunk(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


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


def _start_worker() -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent dies without saying so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
