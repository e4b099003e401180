"""Helper processes: stop signals are their parent's business, and what ends them gets one message.

A terminal, a scheduler or ``kill`` may signal a whole process group. Helpers that are started with
the stop signals blocked stay until their parent has saved what it needs from them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from ..errors import DataError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

LOAD_IN_LINE = "--data.workers 0"
"""The option by which a loader does without processes."""

_DIED = ("exited unexpectedly", "is killed by signal", "terminated abruptly")
_FILES = ("Too many open files", "items of ancdata")
_FULL = ("unable to allocate shared memory", "unable to mmap", "Bus error")


@contextmanager
def stop_signals_blocked(*, spawning: bool = False) -> Iterator[None]:
    """Start helper processes in this block: they inherit that the stop signals are blocked.

    A signal that arrives meanwhile reaches this process at the end of the block.

    Args:
        spawning: the helpers are new interpreters, whose resource tracker starts here, too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        if spawning:
            resource_tracker.ensure_running()
            # starting the tracker has unblocked some of them
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only() -> None:
    """In a helper: end on a SIGTERM of the parent, and on that of nobody else.

    The stop signals must be blocked in every thread; see ``stop_signals_blocked``.
    """
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != parent:
        pass
    os._exit(0)


def cannot_start(error: OSError, remedy: str = LOAD_IN_LINE) -> DataError:
    """The message for what the system says when helper processes are started."""
    return DataError(
        f"cannot start worker processes ({error.strerror or error}): memory, /dev/shm or the "
        f"number of processes is short. Work without them by {remedy}, or raise what is short "
        "(docker run --shm-size 8g)",
        "memory",
    )


def worker_fault(error: BaseException, remedy: str = LOAD_IN_LINE) -> DataError | None:
    """The message for an error by which torch or Python reports a helper process; None for others.

    Args:
        error: as it was raised.
        remedy: option that does without helper processes.
    """
    text = str(error).partition("\n")[0]
    if any(word in text for word in _FULL):
        return DataError(
            f"worker processes ran out of shared memory ({text}): /dev/shm is "
            f"too small. Work without them by {remedy}, use fewer workers or a smaller "
            "--data.batch-size, or enlarge it (docker run --shm-size 8g)",
            "memory",
        )
    if any(word in text for word in _FILES):
        return DataError(
            f"worker processes need more open files ({text}): raise the limit "
            f"(ulimit -n 65536), or work without them by {remedy}",
            "memory",
        )
    if any(word in text for word in _DIED):
        return DataError(
            f"a worker process was killed ({text}), by the system "
            f"for want of memory or by hand. Use fewer workers, or none by {remedy}; the same "
            "command continues",
            "memory",
        )
    return None
