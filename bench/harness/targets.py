"""What the fused operators and whole steps are to reach, beside what they reached.

Those of operators are of both passes at the paper's size in bfloat16: MiT-B0, 1024 x 1024, B=2,
M=4. Those of steps name their setting. They are stated for an H200; on another GPU those that
memory bounds are scaled by the bandwidth of a copy measured there, of which an H100 has 30 % less.
The regulariser and the segmentation loss wait for instructions, of which both have the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bench.harness.report import FUSED, Row, speed_up
from bench.harness.shapes import ON_GPU, PAPER
from bench.step import report as step_report
from bench.step.report import StepRow


class Target(NamedTuple):
    """A bound of a quantity: a field of ``Row``, or ``official`` or ``torch`` for a speed-up."""

    op: str
    quantity: str
    bound: float

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.quantity in ("copy_share", "official", "torch")

    def on(self, share: float) -> float:
        """The bound on a GPU with that share of the bandwidth of an H200."""
        by_memory = self.quantity == "ms" and self.op in ("proto_pool", "proto_kl")
        return self.bound / share if by_memory else self.bound


H200_COPY_GB_PER_S = 4300.0  # of a device copy, read and write counted
_GB = 1e9 / 2**20  # in MiB
TARGETS = (
    Target("proto_pool", "ms", 0.065),
    Target("proto_pool", "copy_share", 0.7),
    Target("proto_pool", "official", 500),
    Target("proto_pool", "torch", 4),
    Target("proto_kl", "ms", 0.20),
    Target("proto_kl", "launches", 12),
    Target("proto_kl", "official", 500),
    Target("proto_kl", "torch", 4),
    Target("ifv_map", "copy_share", 0.6),
    Target("ifv_map", "official", 100),
    Target("ifv_map", "torch", 3),
    Target("func_entropy", "ms", 4.0),
    Target("func_entropy", "peak_mib", 0.6 * _GB),
    Target("func_entropy", "official", 13),
    Target("func_entropy", "torch", 4),
    Target("seg_loss", "ms", 0.25),
    Target("seg_loss", "peak_mib", 0.15 * _GB),
    Target("seg_loss", "official", 8),
    Target("seg_loss", "torch", 3),
    *(
        Target(op, "host_syncs", 0)
        for op in ("proto_pool", "proto_kl", "ifv_map", "func_entropy", "seg_loss")
    ),
)
_TEXT = {
    "ms": ("device time", "{:.3g} ms"),
    "copy_share": ("of a copy's bandwidth", "{:.0%}"),
    "launches": ("launches", "{:.0f}"),
    "peak_mib": ("extra memory", "{:.0f} MiB"),
    "official": ("over the published loops", "{:.3g}x"),
    "torch": ("over the best of PyTorch", "{:.3g}x"),
    "host_syncs": ("waits of the host", "{:.0f}"),
}


def copy_of(rows: Sequence[Row]) -> float | None:
    """Bandwidth of a copy in GB/s, the median of what the processes measured."""
    found = [row.copy_gb_per_s for row in rows if row.copy_gb_per_s is not None]
    return statistics.median(found) if found else None


def _scaled(copy: float | None) -> tuple[float, str]:
    """Share of an H200's bandwidth, and what is said of it."""
    if copy is None:
        return 1.0, "Times and rates are those of an H200: no copy was measured."
    return copy / H200_COPY_GB_PER_S, (
        f"Times and rates that memory bounds are those of an H200 times {copy:.0f} of "
        f"{H200_COPY_GB_PER_S:.0f} GB/s, the bandwidth of a copy."
    )


def lines(rows: Sequence[Row], device: str) -> list[str]:
    """A table in Markdown: target, measured, verdict.

    The row of an operator is its first fused one of both passes at the paper's size in bfloat16.

    Args:
        rows: of operators, with the copies that were measured beside them.
        device: the GPU's name.
    """
    share, said = _scaled(copy_of(rows))
    found = [
        "## Targets",
        "",
        f"Both passes of the fused operators at {PAPER} in bfloat16, on one {device}. {said}",
        "",
        "| operator | case | quantity | target | measured | |",
        "|---|---|---|--:|--:|---|",
    ]
    for target in sorted(TARGETS, key=lambda target: target.op):
        row = _row(target.op, rows)
        what, form = _TEXT[target.quantity]
        limit = target.on(share)
        bound = ("at least " if target.at_least else "at most ") + form.format(limit)
        measured = None if row is None else _measured(target, row, rows)
        if measured is None:
            cells = ["", "not measured"]
        else:
            reached = measured >= limit if target.at_least else measured <= limit
            cells = [form.format(measured), "reached" if reached else "**missed**"]
        case = "" if row is None else row.case
        found.append("| " + " | ".join([target.op, case, what, bound, *cells]) + " |")
    return [*found, ""]


def _row(op: str, rows: Sequence[Row]) -> Row | None:
    wanted = (op, FUSED, "fwd+bwd", "bfloat16")
    for row in rows:
        if (row.op, row.provider, row.mode, row.dtype) == wanted and str(PAPER) in row.case:
            return row
    return None


def _measured(target: Target, row: Row, rows: Sequence[Row]) -> float | None:
    if target.quantity in ("official", "torch"):
        return speed_up(row, rows, target.quantity == "official")
    value: float | None = getattr(row, target.quantity)
    return value


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
    StepTarget(_PAPER, "4", "peak_mib", 6 * _GB),
    StepTarget(_PAPER, "4", "host_syncs", 0),
    StepTarget(_PAPER, "4", "launches", 750),
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
    **_TEXT,
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
        rows: of steps.
        device: the GPU's name.
        copy: bandwidth of a copy in GB/s, if one was measured.
        on_gpu: which targets.
    """
    share, said = _scaled(copy)
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
    scaled = [
        target._replace(bound=target.bound * share) if target.quantity == "images_per_s" else target
        for target in STEP_TARGETS
    ]
    for target in scaled if on_gpu else CPU_STEP_TARGETS:
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
            measured = step_report.speed_up(best, rows, target.quantity)
        else:
            measured = getattr(best, target.quantity)
    cells = ["", "not measured"]
    if measured is not None:
        reached = measured >= target.bound if at_least else measured <= target.bound
        cells = [form.format(measured), "reached" if reached else "**missed**"]
        by_cpu = target.quantity in ("official", "best_torch") and threads is not None
        if by_cpu and (ratio := step_report.speed_up(best, rows, target.quantity, "cpu_ms")):
            cells[0] += f", of CPU time {form.format(ratio)}"
    start = [target.setting, target.modalities, dtype, str(threads or ""), what, bound]
    return "| " + " | ".join([*start, *cells]) + " |"
