"""The profile of one call: its ten dearest kernels, and a trace in Chrome's format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.harness import timing

DEAREST = 10
OF_KERNELS, OF_STEPS = "profile.md", "train_step_profile.md"
_ACTIVITY = torch.profiler.ProfilerActivity


def record(fn: Callable[[], object], title: str, out: Path, table: str = OF_KERNELS) -> None:
    """Profile a warm call; adds a section to ``table`` and writes ``trace-<title>.json.gz``.

    Without a GPU the operators stand for the kernels.

    Args:
        fn: the call.
        title: of the section, fit for the name of a file.
        out: the folder.
        table: name of the file of tables.
    """
    out.mkdir(parents=True, exist_ok=True)
    activities = [_ACTIVITY.CPU, *([_ACTIVITY.CUDA] if timing.ON_GPU else [])]
    fn()
    timing.wait()
    with torch.profiler.profile(activities=activities) as profile:
        fn()
        timing.wait()
    trace = f"trace-{title}.json.gz"
    profile.export_chrome_trace(str(out / trace))
    costs = sorted(
        ((_microseconds(event), event.count, event.key) for event in profile.key_averages()),
        reverse=True,
    )
    costs = [cost for cost in costs if cost[0] > 0]
    total = sum(time for time, _, _ in costs)
    lines = [
        f"## {title}",
        "",
        f"{sum(count for _, count, _ in costs)} in {total:.1f} us, trace in `{trace}`.",
        "",
        "| us | calls | kernel |",
        "|--:|--:|---|",
        *(f"| {time:.1f} | {count} | `{_short(key)}` |" for time, count, key in costs[:DEAREST]),
    ]
    with (out / table).open("a") as file:
        file.write("\n".join(lines) + "\n\n")


def _microseconds(event: Any) -> float:
    """Time on the device of a kernel, copy or fill, zero of everything else."""
    on_device = str(event.device_type).endswith("CUDA")
    if on_device != timing.ON_GPU or getattr(event, "is_user_annotation", False):
        return 0.0
    return float(event.self_device_time_total if timing.ON_GPU else event.self_cpu_time_total)


def _short(name: str) -> str:
    """A kernel's name without what would break the table or fill the page."""
    name = name.replace("|", "/").replace("`", "'")
    return name if len(name) <= 90 else name[:87] + "..."
