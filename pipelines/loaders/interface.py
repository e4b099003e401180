"""The contract between every loader and the trainer."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from ..batch import Batch
from ..datasets.split_files import SplitFiles
from .unreadable import Damage


class Loader(Protocol):
    """Interface of both loaders.

    ``name`` says which one it is (``"torch"`` or ``"dali"``); ``reason`` why it was chosen;
    ``warning`` what to say about the data before it is used, or nothing; ``fingerprint`` is a hash
    of the sample ids; ``damage`` knows those that cannot be read; ``files`` are the samples.
    """

    name: str
    reason: str
    warning: str
    fingerprint: str
    files: SplitFiles
    num_samples: int
    steps_per_epoch: int
    damage: Damage

    def batches(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Batches of the global steps ``start`` (inclusive) to ``stop`` (exclusive).

        For training the stream is endless (``stop=None``) and epoch = step // steps_per_epoch.
        For evaluation one pass has ``steps_per_epoch`` batches, the last one possibly smaller.
        """
        ...

    def check(self) -> None:
        """Before an evaluation: look at everything that it will read, as far as headers tell.

        Raises:
            DataError: a file of this process's samples cannot be used.
        """
        ...

    def close(self) -> None:
        """Release worker processes and threads. Safe to call twice."""
        ...
