"""Compile cases in child processes, so that one that never ends or eats the memory fails alone.

A child is a fork of the caller, which must not have compiled itself: the driver that stands in for
a GPU is process-wide. It is given one case at a time, a limit of memory for all of them, which the
assembler that it starts inherits, and a limit of time for each.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from bench.machine_code.counts import Case, Counts, row_of

CHILDREN = 2
GIB = 10  # of addresses, on top of what is mapped at the start
SECONDS = 120.0  # for a case
CASES = 100  # of a child: what Triton keeps of every kernel adds up

Task = tuple[Case, int]


def compiled(
    tasks: Sequence[Task],
    *,
    children: int = CHILDREN,
    gib: float = GIB,
    seconds: float = SECONDS,
) -> Iterator[tuple[Case, int, Counts | str]]:
    """Compile each case for its architecture, in no particular order.

    Args:
        tasks: cases, each with the compute capability times ten.
        children: processes at a time; no more than there are processors.
        gib: memory of a child.
        seconds: time of a case.

    Yields:
        The case, the capability, and its row, or why there is none.
    """
    waiting = list(range(len(tasks)))[::-1]
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < min(children, os.cpu_count() or 1):
                running.append(_Child(tasks, gib, seconds))
                running[-1].start(waiting.pop())
            pause = max(0.0, min(child.deadline for child in running) - time.monotonic())
            ready = wait([child.connection for child in running], pause)
            for child in list(running):
                if child.connection in ready:
                    result = child.result()
                elif time.monotonic() >= child.deadline:
                    result = f"stopped after {seconds:g} s"
                    child.lost = True
                else:
                    continue
                yield (*tasks[child.index], result)
                if waiting and not child.lost and child.done < CASES:
                    child.start(waiting.pop())
                else:
                    running.remove(child)
                    child.stop()
    finally:
        for child in running:
            child.stop()


class _Child:
    """A process that compiles the tasks whose numbers it is sent."""

    def __init__(self, tasks: Sequence[Task], gib: float, seconds: float) -> None:
        self.seconds, self.done, self.lost = seconds, 0, False
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, tasks, gib), daemon=True)
        self.process.start()
        other.close()

    def start(self, index: int) -> None:
        self.index, self.deadline = index, time.monotonic() + self.seconds
        self.connection.send(index)

    def result(self) -> Counts | str:
        self.done += 1
        try:
            row: Counts | str = self.connection.recv()
        except (EOFError, OSError):
            self.lost = True
            self.process.join()
            return f"the compiler's process ended with {_ending(self.process.exitcode)}"
        return row

    def stop(self) -> None:
        """End the process and the assembler it may have started."""
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):  # it ended, or has not begun
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code and code < 0 else f"code {code}"


def _serve(connection: Connection, tasks: Sequence[Task], gib: float) -> None:
    os.setpgid(0, 0)
    page = os.sysconf("SC_PAGE_SIZE")
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * page
    limit, hard = mapped + int(gib * 2**30), resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            case, capability = tasks[connection.recv()]
        except EOFError:
            return
        try:
            connection.send(row_of(case, capability))
        except Exception as error:
            connection.send(f"{type(error).__name__}: {str(error).strip()[:500]}")
