"""Lines for people on standard error: one live line of progress, and messages."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any


class Progress:
    """One line that is rewritten on a terminal, and a plain line now and then in a pipe."""

    def __init__(
        self,
        title: str,
        total: int,
        start: int = 0,
        every_s: float = 10.0,
        shown: bool = True,
    ) -> None:
        self._title, self._total, self._start, self._step = title, total, start, start
        self._every_s, self._shown = every_s, shown
        self._began = time.perf_counter()
        self._printed = self._began
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=start, desc=title, dynamic_ncols=True, mininterval=0.2
            )
        self._facts = ""

    def show(self, facts: dict[str, str]) -> None:
        """Set what stands behind the count."""
        self._facts = " ".join(f"{key} {value}" for key, value in facts.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._facts, refresh=False)

    def advance(self) -> None:
        """One step is done."""
        self._step += 1
        if self._bar is not None:
            self._bar.update(1)
            return
        now = time.perf_counter()
        due = now - self._printed >= self._every_s or self._step == self._total
        if self._shown and due:
            self._printed = now
            done = self._step - self._start
            left = (self._total - self._step) * (now - self._began) / done
            print(
                f"{self._title}: {self._step}/{self._total} {self._facts} ETA {duration(left)}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Finish the line."""
        if self._bar is not None:
            self._bar.close()


def tracked(items: Iterable[Any], title: str, total: int, shown: bool = True) -> Iterable[Any]:
    """Iterate with a `Progress` line."""
    progress = Progress(title, total, shown=shown)
    try:
        for item in items:
            yield item
            progress.advance()
    finally:
        progress.close()


def duration(seconds: float) -> str:
    """``1:05`` or ``2:03:04``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def foretell(what: str, seconds: float, ahead: int) -> str:
    """Line with the time that ``ahead`` steps will take, if each takes as long as this one."""
    return f"{what} took {1e3 * seconds:.0f} ms, {ahead} of them {duration(ahead * seconds)}"
