"""Commands in processes forked from one that has imported torch, triton and fastseg.

A Python that imports them takes 3.5 s of a core before it does anything, and the tests start more
than a hundred. What a command does is the same; that it starts from nothing is left to the tests
which call ``sys.executable`` or torchrun.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["fastseg.train", "fastseg.evaluate", "torch.profiler", "torch._dynamo"]


class WarmProcess:
    """As much of `subprocess.Popen` as tests use, both outputs piped as text.

    Args:
        words: of the command after ``python``: ``-m MODULE ...``, ``-c CODE ...`` or ``FILE ...``.
        environment: all variables of the process. Those of the first one are in force while torch
            is imported, such as ``OMP_NUM_THREADS``.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._texts = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        CONTEXT.set_forkserver_preload(PRELOADED)
        with mock.patch.dict(os.environ, environment, clear=True):
            forkserver.ensure_running()
        names = [text.name for text in self._texts]
        self._process = CONTEXT.Process(target=_run, args=(list(words), dict(environment), names))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit code, the negative number of the signal that ended it, or None."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to this process, unless it has ended."""
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; what was written to standard output and error.

        Raises:
            TimeoutError: it has not ended after so many seconds; what it wrote so far.
        """
        self._process.join(timeout)
        for text in self._texts:
            text.seek(0)
        out, said = (text.read() for text in self._texts)
        if self.poll() is None:
            raise TimeoutError(f"no end after {timeout} s\n{out}\n{said}")
        return out, said


def _run(words: list[str], environment: dict[str, str], outputs: list[str]) -> None:
    """Become the command, in the forked process."""
    for descriptor, name in enumerate(outputs, start=1):
        with open(name, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # that of its workers is not its own
    os.environ.clear()
    os.environ.update(environment)
    kind, *rest = words
    if kind == "-m":
        name, *sys.argv[1:] = rest
        sys.modules.pop(name, None)  # it runs as __main__, and runpy warns of another copy
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        code, *sys.argv[1:] = rest
        sys.argv[0] = "-c"
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv[:] = words
        sys.path.insert(0, os.path.dirname(kind))
        runpy.run_path(kind, run_name="__main__")
