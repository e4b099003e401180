"""The processes of a run: which one this is, and what they tell each other beside the training.

Started by torchrun, or by anything that sets its variables, a run has one process per device. A
process alone has no group: nothing here then sends or waits.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastseg.errors import ConfigError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
_POLL_SECONDS = 0.1
_STORE_SECONDS = 3.0
"""How long a process that leaves waits for an answer of the store, which others may hold."""
_FAILED, _CODE, _LEFT = "fastseg/failed", "fastseg/exit-code", "fastseg/left"
_ALIVE = "fastseg/alive"


class OthersFailed(Exception):
    """Another process ended with an error, said why, and left this exit code for all."""

    def __init__(self, code: int) -> None:
        super().__init__(f"another process ended with exit code {code}")
        self.code = code


class Ranks:
    """This process and its peers.

    Attributes:
        rank: this process, from 0; rank 0 writes files and speaks.
        world: number of processes.
        local_world: processes of this node.
        device: device on which this process computes.
        store: key-value store of all processes; None for one alone.
        control: gloo group for small messages on the host, apart from the training's collectives.
        background: gloo group of the threads that write training states beside the training.
        at: what this process does, for the message about a lost one: ``step 7 of teacher``.
    """

    def __init__(
        self,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        local_world: int = 1,
        store: Store | None = None,
        control: dist.ProcessGroup | None = None,
        background: dist.ProcessGroup | None = None,
    ) -> None:
        self.device, self.rank, self.world, self.local_world = device, rank, world, local_world
        self.store, self.control, self.background = store, control, background
        self.at = ""
        self._calls = 0

    @property
    def is_first(self) -> bool:
        """True if this process writes files and speaks for all."""
        return self.rank == 0

    def first(self, task: Callable[[], Any]) -> None:
        """Run ``task`` on rank 0 while the others wait for its end, however long it takes.

        Raises:
            OthersFailed: on the waiting ranks, when rank 0 failed.
        """

        def run() -> None:
            task()

        self.share(run)

    def share(self, make: Callable[[], Any]) -> Any:
        """The value that ``make`` has on rank 0, on every rank; it travels as JSON.

        Raises:
            OthersFailed: on the waiting ranks, when rank 0 failed.
        """
        if self.store is None:
            return make()
        self._calls += 1
        key = f"fastseg/shared-{self._calls}"
        if self.is_first:
            value = make()
            self.store.set(key, json.dumps(value))
            return value
        while not self.store.check([key]):
            if self.store.check([_CODE]):
                raise OthersFailed(int(self.store.get(_CODE)))
            time.sleep(_POLL_SECONDS)
        return json.loads(self.store.get(key))

    def agree(self, facts: Mapping[str, int], where: str) -> None:
        """Check that every rank has the same number for every fact.

        Raises:
            ConfigError: on every rank; the message names the facts and the ranks that differ.
        """
        if self.world == 1:
            return
        rows = self.gather(list(facts.values()))
        differing = []
        for name, values in zip(facts, zip(*rows, strict=True), strict=True):
            if others := [str(rank) for rank, value in enumerate(values) if value != values[0]]:
                differing.append(f"{name}: rank {', '.join(others)} against rank 0")
        if differing:
            raise ConfigError(
                f"the processes are about to do different work {where}, which would give wrong "
                "numbers:\n  " + "\n  ".join(differing) + "\nStart every process with the same "
                "command, code and files."
            )

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        """The integers of every rank, by rank."""
        own = torch.tensor(values, dtype=torch.int64)
        rows = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(rows, own, group=self.control)
        return [row.tolist() for row in rows]

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, by rank, exact to the bit."""
        own = torch.tensor(values, dtype=torch.float64)
        if self.world == 1:
            return [own.tolist()]
        rows = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(rows, own, group=self.control)
        return [row.tolist() for row in rows]

    def exchange(self, value: Any, group: dist.ProcessGroup | None) -> list[Any]:
        """The values of every rank, by rank; they travel as JSON. Collective in the group."""
        if self.world == 1:
            return [value]
        own = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([own.numel()]), group=group)
        # rows of one length, of which the first bytes count
        longest = int(max(sizes))
        rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(rows, torch.cat([own, own.new_zeros(longest - own.numel())]), group=group)
        texts = [bytes(row[: int(size)].tolist()) for row, size in zip(rows, sizes, strict=True)]
        return [json.loads(text) for text in texts]

    def union(self, values: Collection[int]) -> set[int]:
        """The integers that any rank has."""
        if self.world == 1:
            return set(values)
        longest = max(count for (count,) in self.gather([len(values)]))
        # rows of one length, filled up with zeros that are not counted
        rows = self.gather([len(values), *values, *[0] * (longest - len(values))])
        return {value for count, *row in rows for value in row[:count]}

    def reduce(self, values: Sequence[float], how: str = "mean") -> list[float]:
        """Mean or maximum over the ranks of each value."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        operation = dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM
        dist.all_reduce(total, operation, group=self.control)
        numbers: list[float] = (total if how == "max" else total / self.world).tolist()
        return numbers

    def total(self, counts: Tensor) -> Tensor:
        """The exact sum over the ranks of an integer tensor on the device."""
        if self.world > 1:
            dist.all_reduce(counts)
        return counts

    def claim_failure(self, code: int) -> bool:
        """True if this process is the first to fail, and so the one to say why."""
        store = self.store
        assert store is not None

        def claim() -> bool:
            first = bool(store.add(_FAILED, 1) == 1)
            if first:
                store.set(_CODE, str(code))
            return first

        # the process that holds the store is gone or hangs, and cannot have said why
        return _in_time(claim, True)

    def tell_alive(self) -> None:
        """After a broken collective: let the others know that it was not this process."""
        store = self.store
        assert store is not None
        _in_time(lambda: store.set(f"{_ALIVE}-{self.rank}", ""), None)

    def silent(self) -> list[int]:
        """The ranks that have not called `tell_alive`; of the store, at once."""
        store = self.store
        assert store is not None
        others = [rank for rank in range(self.world) if rank != self.rank]
        # the process that holds the store; torchrun has one of its own
        holder = [] if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else [0]
        return _in_time(
            lambda: [rank for rank in others if not store.check([f"{_ALIVE}-{rank}"])], holder
        )

    def linger(self, patience_s: float) -> None:
        """After a failure: the process that holds the store waits until the others have read it.

        torchrun holds it in a process of its own; else it is rank 0.
        """
        store = self.store
        if store is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return
        left = _in_time(lambda: store.add(_LEFT, 1), None)
        if left is None or not self.is_first:
            return
        if self.device.type == "cpu":
            # closed connections wake the others; it may wait for an exchange, so not here
            Thread(target=dist.destroy_process_group, daemon=True).start()
        deadline = time.monotonic() + patience_s
        with suppress(RuntimeError):  # the store is gone already
            while store.add(_LEFT, 0) < self.world and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)

    def failure_of_others(self, patience_s: float) -> int | None:
        """Exit code of a process that failed, or None if none says so within the time."""
        store = self.store
        assert store is not None

        def find() -> int:
            store.wait([_CODE], timedelta(seconds=patience_s))
            return int(store.get(_CODE))

        return _in_time(find, None, patience_s + _STORE_SECONDS)


def _in_time(call: Callable[[], T], otherwise: T, seconds: float = _STORE_SECONDS) -> T:
    """What a call of the store returns; something else if its process is gone or hangs."""
    found: list[T] = []

    def run() -> None:
        with suppress(RuntimeError, ValueError):
            found.append(call())

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else otherwise
