"""A background thread that stays a few items ahead of its consumer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1
"""How long a thread with a full queue may take to notice that it should end."""


class ThreadPrefetcher(Generic[Item]):
    """Iterate over ``items`` in a thread, ``depth`` ahead.

    An exception of ``items`` is raised at its place in the stream. ``close`` ends the thread and
    may be called at any time, also twice; a thread nobody closes does not keep Python alive.
    """

    def __init__(self, items: Iterator[Item], depth: int = 2) -> None:
        self._items = items
        self._queue: Queue[tuple[str, Item | BaseException | None]] = Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastseg-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while not self._stop.is_set():
            try:
                kind, value = self._queue.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]

    def close(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
        except BaseException as error:
            self._put("error", error)
        else:
            self._put("end", None)

    def _put(self, kind: str, value: Item | BaseException | None) -> bool:
        """Whether the consumer still wants it."""
        while not self._stop.is_set():
            try:
                self._queue.put((kind, value), timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False
