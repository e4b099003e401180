"""Work beside the training: one task at a time in a thread, and memory of its own to work on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Thread

import torch
from torch import Tensor


def saves_beside(wanted: str, device: torch.device) -> bool:
    """Whether states are written beside the training.

    Args:
        wanted: ``on``, ``off``, or ``auto``: where a GPU trains and the processor has time.
        device: device that trains.
    """
    return wanted == "on" or (wanted == "auto" and device.type == "cuda")


class BesideTraining:
    """Runs one task at a time; its error is raised by the next call of `check` or `wait`.

    Attributes:
        what: what the last task writes, for messages.
    """

    def __init__(self) -> None:
        self.what = ""
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, task: Callable[[], None], what: str) -> None:
        """Begin a task that writes ``what``; the one before has been waited for."""
        assert self._thread is None
        self.what = what

        def run() -> None:
            try:
                task()
            except BaseException as error:
                self._error = error

        # a process that has to leave at once does not wait for it
        self._thread = Thread(target=run, name="training-state", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """True while a task runs."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise the error of a task that has ended; nothing waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self, seconds: float | None = None) -> float:
        """Wait for the task, if there is one, and raise its error.

        Args:
            seconds: how long at most; the task may then still run.

        Returns:
            Seconds that were waited.
        """
        began = time.monotonic()
        if self._thread is not None:
            self._thread.join(seconds)
            if not self._thread.is_alive():
                self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return time.monotonic() - began


class Staging:
    """Copies of tensors on the CPU that a task may read while the training goes on.

    The memory is used again by the next copies of the same shapes; for those of a GPU it is pinned,
    and the host does not wait for them.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def copy(
        self, files: Mapping[str, Mapping[str, Tensor]]
    ) -> tuple[dict[str, dict[str, Tensor]], torch.cuda.Event | None]:
        """Copies by file and name, and an event of the GPU after which they are complete."""
        buffers: dict[tuple[str, str], Tensor] = {}
        found: dict[str, dict[str, Tensor]] = {file: {} for file in files}
        event = None
        for file, named in files.items():
            for name, tensor in named.items():
                buffer = self._buffers.get((file, name))
                if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                    buffer = torch.empty(
                        tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                    )
                buffers[file, name] = found[file][name] = buffer
                buffer.copy_(tensor, non_blocking=True)
                if tensor.is_cuda and event is None:
                    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._buffers = buffers
        if event is not None:
            event.record()
        return found, event
