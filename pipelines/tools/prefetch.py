"""Background threads that stay a few items ahead of their consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


class ThreadPrefetcher(Generic[Key, Item]):
    """``function(key)`` of all ``keys``, in their order, made ahead by threads.

    At most ``depth`` items per thread are under way or waiting. An exception is raised at its place
    in the stream. ``close`` ends the threads and with them the stream; it may be called at any
    time, also twice.
    """

    def __init__(
        self, function: Callable[[Key], Item], keys: Iterable[Key], threads: int = 1, depth: int = 2
    ) -> None:
        self._function, self._keys = function, iter(keys)
        self._ahead = threads * depth
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fastseg-prefetch")
        self._items: deque[Future[Item]] = deque()
        self._closed = False

    def __iter__(self) -> Iterator[Item]:
        self._refill()
        while self._items and not self._closed:
            try:
                item = self._items.popleft().result()
            except CancelledError:
                return
            self._refill()
            yield item

    def close(self) -> None:
        """End the threads and wait for them."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _refill(self) -> None:
        while len(self._items) < self._ahead and not self._closed:
            try:
                key = next(self._keys)
            except StopIteration:
                return
            self._items.append(self._pool.submit(self._function, key))
