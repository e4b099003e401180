"""Where a long task is, when it will be done and what it has found: a line on standard error.

``--quiet`` of the commands leaves it out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

_SLOWER = 20
"""Lines of a pipe come at least this part of the time so far apart: many at first, then few."""


class _Lines:
    """What the command of this process was asked for."""

    quiet = False


def hush(quiet: bool) -> None:
    """Leave out progress and details from here on, or no longer."""
    _Lines.quiet = quiet


def is_quiet() -> bool:
    """True if progress and details are left out."""
    return _Lines.quiet


class Progress:
    """One line that is rewritten on a terminal, and a plain line now and then in a pipe.

    Args:
        title: of the task.
        total: number of its steps; 0: it is not known.
        start: steps that were done before.
        every_s: seconds between two lines of a pipe; later more, see `_SLOWER`.
        shown: False on a process that does not speak.
        unit: of a step, on a terminal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        start: int = 0,
        every_s: float = 10.0,
        shown: bool = True,
        unit: str = "it",
    ) -> None:
        self._title, self._total = title, total
        self._start, self._step = start, float(start)
        self._every_s, self._shown = every_s, shown and not _Lines.quiet
        self._began = time.perf_counter()
        self._printed = self._began
        self._facts = ""
        self._bar: Any = None
        if self._shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total or None, initial=start, desc=title, unit=unit, dynamic_ncols=True,
                mininterval=0.2,
            )  # fmt: skip

    def show(self, facts: dict[str, str]) -> None:
        """Set what stands behind the count."""
        self._facts = "".join(f" {key} {value}" for key, value in facts.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._facts.strip(), refresh=False)

    def advance(self, steps: float = 1) -> None:
        """Count steps that are done."""
        self._step += steps
        if self._bar is not None:
            self._bar.update(steps)
            return
        now = time.perf_counter()
        pause = max(self._every_s, (now - self._began) / _SLOWER)
        finished = 0 < self._total <= self._step
        if self._shown and (finished or now - self._printed >= pause):
            self._printed = now
            print(self._line(now - self._began, finished), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self, seconds: float, finished: bool) -> str:
        count = f"{self._title}: {int(self._step)}"
        if not self._total:
            return f"{count}{self._facts}"
        count += f"/{self._total} {int(100 * self._step / self._total)} %{self._facts}"
        if finished:
            return f"{count} in {duration(seconds)}"
        left = (self._total - self._step) * seconds / (self._step - self._start)
        return f"{count} ETA {duration(left)} at {_clock(left)}"


def tracked(items: Iterable[Any], title: str, total: int, shown: bool = True) -> Iterable[Any]:
    """Iterate with a `Progress` line."""
    with Progress(title, total, shown=shown) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float) -> str:
    """``1:05`` or ``2:03:04``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def foretell(what: str, seconds: float, ahead: int) -> str:
    """Line with the time that ``ahead`` steps will take, if each takes as long as this one."""
    return f"{what} took {1e3 * seconds:.0f} ms, {ahead} of them {duration(ahead * seconds)}"


def _clock(seconds: float) -> str:
    """The time of day so many seconds from now, with the day if that is not this one."""
    now = datetime.now()
    then = now + timedelta(seconds=seconds)
    return then.strftime("%H:%M" if then.date() == now.date() else "%a %d %b %H:%M")
