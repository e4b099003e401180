"""Stop requests from outside: the current step is finished and saved first."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from fastseg.distributed.ranks import Ranks
from fastseg.pipelines.tools.workers import STOP_SIGNALS

SAME_REQUEST_S = 2.0
"""Signals within this time of the first are the same request: torchrun repeats a signal that its
process group has got already, and a terminal that is closed sends SIGHUP twice."""
DATA_PATIENCE_S = 10.0
"""How long a step that waits for data may still wait for it after a request."""


class StillWaiting(Exception):
    """A stop was requested, and the data of the next step do not come."""


class StopRequest:
    """While active, a stop signal sets ``requested``; a later one acts at once.

    Stop signals are SIGINT, SIGTERM, SIGUSR1 and SIGHUP; the last not where it was ignored before,
    as ``nohup`` does. What comes within two seconds of the first one counts as the same request.
    The death of the torchrun that started this process is a request, too.
    """

    def __init__(self) -> None:
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._asked_at: float | None = None
        self._waits = False
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """True if the run is to be saved and left."""
        orphaned = self._launcher is not None and os.getppid() != self._launcher
        return self._asked_at is not None or orphaned

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While waiting for data: do so ten more seconds at most once a stop is requested.

        Raises:
            StillWaiting: they are over.
        """
        self._waits = True
        try:
            if self.requested:
                self._limit_wait()
            yield
        finally:
            self._waits = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (number == signal.SIGHUP and ignored):
                self._previous[number] = signal.signal(number, self._handle)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            if self._waits:
                self._limit_wait()
        elif time.monotonic() - self._asked_at > SAME_REQUEST_S:
            self._restore()
            os.kill(os.getpid(), number)

    def _limit_wait(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, DATA_PATIENCE_S)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        if self._waits:
            raise StillWaiting

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}


class AgreedStop:
    """The stop requests of all processes, answered alike at the same step.

    The exchange started at one step is read at the next, so no process waits for it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._exchange: tuple[dist.Work, Tensor] | None = None

    def __call__(self, requested: bool) -> bool:
        """True to stop now; call once per step on every process.

        One process stops at once, several one step after any of them was asked to.
        """
        if self._ranks.world == 1:
            return requested
        if self._exchange is not None:
            work, votes = self._exchange
            work.wait()
            if int(votes):
                return True
        votes = torch.tensor(int(requested))
        work = dist.all_reduce(votes, group=self._ranks.control, async_op=True)
        assert work is not None
        self._exchange = work, votes
        return False
