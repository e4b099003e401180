"""Stop requests from outside: the current step is finished and saved first."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from fastseg.ranks import Ranks

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """While active, SIGINT, SIGTERM or SIGUSR1 sets ``requested``; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

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
        """Whether to stop now; call once per step on every process.

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
