"""Targets of whole training steps, beside what they reached.

Targets name their setting. They are stated for an H200; on another GPU images per second are scaled
by the bandwidth of a copy measured there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.harness.rows import speed_up
from bench.harness.shapes import ON_GPU
from bench.harness.targets import MIB_PER_GB, TEXT, scaled
from bench.step.rows import StepRow


class StepTarget(NamedTuple):
    """A bound for the fastest of fastseg's steps.

    The quantity is a field of ``StepRow``, or a provider for a speed-up over its fastest variant;
    with a dtype the steps in that dtype alone count, beside the published one.
    """

    setting: str
    modalities: str
    quantity: str
    bound: float
    dtype: str = ""


_PAPER = "stage2 b0 1024px B2 rrm"
STEP_TARGETS = (
    StepTarget(_PAPER, "random", "images_per_s", 125),
    StepTarget(_PAPER, "random", "official", 12),
    StepTarget(_PAPER, "random", "best_torch", 1.5),
    StepTarget(_PAPER, "4", "images_per_s", 90),
    StepTarget(_PAPER, "4", "peak_mib", 6 * MIB_PER_GB),
    StepTarget(_PAPER, "4", "host_syncs", 0),
    StepTarget(_PAPER, "4", "launches", 700),
    StepTarget("stage1 b0 1024px B2", "4", "images_per_s", 135),
    StepTarget("stage2 b2 1024px B2 rrm", "random", "images_per_s", 50),
    StepTarget("stage2 b0 256px B8 rrm", "random", "images_per_s", 1000),
)
CPU_STEP_TARGETS = tuple(
    StepTarget("stage2 b0 256px B2 rrm", "4", quantity, bound, dtype)
    for dtype in ("float32", "bfloat16")
    for quantity, bound in (("official", 4), ("best_torch", 1))
)
_STEP_TEXT = {
    **TEXT,
    "images_per_s": ("images/s", "{:.4g}"),
    "peak_mib": ("peak memory", "{:.0f} MiB"),
    "official": ("over the published step", "{:.3g}x"),
    "best_torch": ("over the expert's step", "{:.3g}x"),
}


def step_lines(
    rows: Sequence[StepRow], device: str, copy: float | None = None, on_gpu: bool = ON_GPU
) -> list[str]:
    """A table in Markdown for whole steps: target, measured, verdict.

    Args:
        rows: rows of steps.
        device: the GPU's name.
        copy: bandwidth of a copy in GB/s, if one was measured.
        on_gpu: true for the targets of a GPU, false for those of a CPU.
    """
    share, said = scaled(copy)
    found = [
        "## Targets",
        "",
        "Of the fastest of fastseg's steps, "
        + (f"on one {device}. {said}" if on_gpu else "on a CPU."),
        "",
        "| setting | M | dtype | threads | quantity | target | measured | |",
        "|---|---|---|---|---|--:|--:|---|",
    ]
    counts = list(dict.fromkeys(row.threads for row in rows)) or [None]
    stated = [
        target._replace(bound=target.bound * share) if target.quantity == "images_per_s" else target
        for target in STEP_TARGETS
    ]
    for target in stated if on_gpu else CPU_STEP_TARGETS:
        for threads in counts:
            same = [row for row in rows if row.threads == threads]
            if target.dtype:
                fitting = (target.dtype, "official")
                same = [row for row in same if row.dtype in fitting or row.provider in fitting]
            found.append(_step_line(target, same, threads))
    return [*found, ""]


def _step_line(target: StepTarget, rows: Sequence[StepRow], threads: int | None) -> str:
    timed = [
        row
        for row in rows
        if row.group == (target.setting, target.modalities)
        and row.provider.split()[0] == "fastseg"
        and row.ms is not None
    ]
    what, form = _STEP_TEXT[target.quantity]
    at_least = target.quantity in ("images_per_s", "official", "best_torch")
    bound = ("at least " if at_least else "at most ") + form.format(target.bound)
    measured, dtype = None, target.dtype
    if timed:
        best = min(timed, key=lambda row: row.ms or 0.0)
        dtype = best.dtype
        if target.quantity in ("official", "best_torch"):
            measured = speed_up(best, rows, target.quantity)
        else:
            measured = getattr(best, target.quantity)
    cells = ["", "not measured"]
    if measured is not None:
        reached = measured >= target.bound if at_least else measured <= target.bound
        cells = [form.format(measured), "reached" if reached else "**missed**"]
        by_cpu = target.quantity in ("official", "best_torch") and threads is not None
        if by_cpu and (ratio := speed_up(best, rows, target.quantity, "cpu_ms")):
            cells[0] += f", of CPU time {form.format(ratio)}"
    start = [target.setting, target.modalities, dtype, str(threads or ""), what, bound]
    return "| " + " | ".join([*start, *cells]) + " |"
