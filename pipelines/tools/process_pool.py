"""Work that is cut into independent pieces: in processes that die with their parent, with a bar."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

from .workers import cannot_start, obey_parent_only, stop_signals_blocked, worker_fault

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 8
"""Items per task: short enough that an interrupt is answered within a second or two."""
_POOL_FROM = 32
"""With fewer items than this, starting processes costs more than it saves."""
_IN_LINE = "--workers 1 of python -m fastseg.data"
"""The option by which the commands do without processes."""


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
        DataError: the processes cannot be started, or one of them was killed.
    """
    processes = min(processes or usable_cpus(), len(items) // _CHUNK)
    if processes < 2 or len(items) < _POOL_FROM:
        yield from map(function, items)
        return
    # spawn: a forked child of a process with threads may hang
    try:
        pool = ProcessPoolExecutor(
            processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        )
    except OSError as error:
        raise cannot_start(error, _IN_LINE) from None
    try:
        # an interrupt reaches the whole process group; the parent alone answers it
        with stop_signals_blocked(spawning=True):
            tasks = [
                pool.submit(_chunk, function, items[i : i + _CHUNK])
                for i in range(0, len(items), _CHUNK)
            ]
        for task in as_completed(tasks):
            yield from task.result()
    except BrokenProcessPool as error:
        raise (worker_fault(error, _IN_LINE) or error) from None
    finally:
        # running pieces end and their files are kept; waiting leaves no process behind
        pool.shutdown(wait=True, cancel_futures=True)


def _chunk(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _start_worker() -> None:
    obey_parent_only()
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent dies without saying so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
