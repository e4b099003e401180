"""Clocks and counters: device time, copy bandwidth, launches, host syncs, peak memory.

On a GPU a time is what the device needs: the second-level cache is overwritten before each call,
and a short sleep kernel lets the host queue the whole call before the clock starts, so that Python
is not timed (``wall_ms`` holds the time with it). A provider that waits for the device in between
cannot be queued ahead; its waits are in its time.
"""

from __future__ import annotations

import functools
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ON_GPU = torch.cuda.is_available()
WARM_UPS = 25
FLUSH_BYTES = 256 << 20  # several times the cache of any GPU so far
CYCLES_PER_MS = 2_000_000  # of the sleep kernel, at about 2 GHz
LONGEST_SLEEP_MS = 20.0

Call = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call."""

    median: float
    p20: float
    p80: float
    noise: float
    """Relative difference between the medians of two measurements in a row."""


def time_of(fn: Call, seconds: float) -> Times:
    """Time a call for about ``seconds``, in two halves."""
    first = _samples(fn, seconds / 2)
    second = _samples(fn, seconds / 2)
    low, high = sorted((statistics.median(first), statistics.median(second)))
    both = sorted(first + second)
    return Times(
        median=statistics.median(both),
        p20=both[len(both) // 5],
        p80=both[(4 * len(both)) // 5],
        noise=(high - low) / high,
    )


def wall_ms(fn: Call) -> float:
    """Host milliseconds per call of up to ten calls with one wait at the end."""
    calls = max(2, min(10, int(500 / host_ms(fn))))
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    wait()
    return (time.perf_counter() - start) * 1e3 / calls


@functools.cache
def copy_gb_per_s() -> float:
    """Bandwidth of a device copy in this process, read and write counted."""
    size = (512 if ON_GPU else 64) << 20
    source = torch.ones(size, dtype=torch.uint8, device="cuda" if ON_GPU else "cpu")
    target = torch.empty_like(source)
    times = time_of(lambda: target.copy_(source), 0.5)
    return 2 * size / times.median / 1e6


def wait() -> None:
    """Until the device is done."""
    if ON_GPU:
        torch.cuda.synchronize()


@functools.cache
def flush_buffer() -> Tensor:
    """Buffer that is overwritten between calls; kept out of the memory measurements."""
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")


def _samples(fn: Call, seconds: float) -> list[float]:
    once = host_ms(fn)  # also compiles, tunes and fills the allocator's cache
    once = min(once, host_ms(fn))
    for _ in range(min(WARM_UPS, int(100 * seconds / once))):
        fn()
    rounds = max(3, min(500, int(1e3 * seconds / (once + (0.1 if ON_GPU else 0)))))
    if not ON_GPU:
        return [host_ms(fn) for _ in range(rounds)]
    buffer = flush_buffer()
    cycles = int(min(1.5 * _queue_ms(fn), LONGEST_SLEEP_MS) * CYCLES_PER_MS)
    events = [(_event(), _event()) for _ in range(rounds)]
    for start, end in events:
        buffer.zero_()
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        start.record()
        fn()
        end.record()
    torch.cuda.synchronize()
    return [float(start.elapsed_time(end)) for start, end in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def host_ms(fn: Call) -> float:
    """Host milliseconds of one call and the wait for its end."""
    wait()
    start = time.perf_counter()
    fn()
    wait()
    return (time.perf_counter() - start) * 1e3


def _queue_ms(fn: Call) -> float:
    """Milliseconds that the host needs to queue a call."""
    wait()
    start = time.perf_counter()
    fn()
    elapsed = (time.perf_counter() - start) * 1e3
    wait()
    return elapsed


SYNCING = {
    "_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero", "unique_dim",
    "_unique", "_unique2", "unique_consecutive",
}  # fmt: skip
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what would be launches and waits if the tensors were on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = 0
        self.syncs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func._schema.name.removeprefix("aten::")
        indexes = (
            args[1] if name in {"index", "index_put", "index_put_", "_index_put_impl_"} else ()
        )
        by_mask = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indexes)
        self.syncs += name in SYNCING or by_mask
        self.launches += not func.is_view and name not in FREE
        return func(*args, **(kwargs or {}))


def count(fn: Call) -> tuple[int | None, int | None]:
    """Launches and host syncs of one call.

    On a GPU they are the kernels, copies and fills that the profiler saw, None where the profiler
    sees none, and torch's own warnings of waits. On the CPU launches are the operators that are not
    views, a lower bound of the launches on a GPU, and syncs the operators that would wait.
    """
    if not ON_GPU:
        with _Operators() as seen:
            fn()
        return seen.launches, seen.syncs
    fn()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        fn()
        torch.cuda.synchronize()
    on_device = [
        event
        for event in profile.events()
        if str(event.device_type).endswith("CUDA")
        and not getattr(event, "is_user_annotation", False)
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            fn()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    syncs = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
    return len(on_device) or None, syncs


def peak_extra_mib(fn: Call) -> float:
    """Memory that a call needs at its worst moment beyond what was there, results included."""
    if not ON_GPU:
        return _cpu_peak_extra_mib(fn)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fn()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _cpu_peak_extra_mib(fn: Call) -> float:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = fn()
    del kept
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = worst = 0
    for _, nbytes in sorted(changes):
        held += nbytes
        worst = max(worst, held)
    return worst / 2**20
