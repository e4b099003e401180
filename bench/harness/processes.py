"""Python processes in the checkout that end in time, with everything they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[str]
PAUSE = 15.0  # seconds between two calls of what is to be done meanwhile


def start(
    command: Sequence[str], log: IO[str] | None = None, more: Mapping[str, str] | None = None
) -> Process:
    """A process with a group of its own and the kernels compiled; prints into the file, if any.

    Args:
        command: what follows ``python``.
        log: file for what it prints.
        more: environment variables.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment | dict(more or {}),
        text=True,
        start_new_session=True,
        stdout=log,
        stderr=log,
    )


def ended(process: Process, seconds: float, meanwhile: Callable[[], object] | None = None) -> bool:
    """Wait for a process; stop it and what it started after so many seconds.

    Args:
        process: as made by `start`.
        seconds: to wait at most.
        meanwhile: called every now and then.
    """
    stop = time.monotonic() + max(0.1, seconds)
    try:
        while True:
            left = stop - time.monotonic()
            try:
                process.wait(timeout=max(0.0, min(PAUSE, left) if meanwhile else left))
            except subprocess.TimeoutExpired:
                if time.monotonic() >= stop:
                    return False
                if meanwhile:
                    meanwhile()
            else:
                return True
    finally:
        # also what outlived it, such as the compiler's workers
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
