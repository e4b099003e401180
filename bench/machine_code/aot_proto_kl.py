"""The kernel of the prototype divergence, as the launcher of the operator launches it."""

from __future__ import annotations

from typing import Any

import torch

from bench.harness.shapes import WIDTHS
from bench.machine_code.aot_proto_pool import as_cases, recorded
from fastseg.kernels.prototypes import divergence


def cases() -> list[tuple[Any, ...]]:
    """All levels of a step, paired and row for row; one level on its own; long axes."""
    found: list[tuple[Any, ...]] = []

    def add(name: str, widths: tuple[int, ...] = WIDTHS["b0"], **options: Any) -> None:
        found.extend(as_cases(name, _launches(widths, **options)))

    for axis in ("class", "channel"):
        for backbone, widths in WIDTHS.items():
            add(f"{backbone}-B2-M4-{axis}", widths, axis=axis)
        add(f"b0-B2-M2-of-4-zero-row-{axis}", axis=axis, student=2, absent="zero_row")
        add(f"level-B2-M4-{axis}", (64,), axis=axis)
    add("b0-B2-M4-K19-class", num_classes=19)
    add("b0-B1-M1-class", b=1, student=1, teacher=1)
    add("b0-B2-M4-K200-class", num_classes=200)
    add("1024-channels-B2-M4-channel", (1024,), axis="channel")
    add("b0-B2-M4-code", paired=False, absent="zero_row")
    return found


def _launches(
    widths: tuple[int, ...],
    axis: str = "class",
    absent: str = "mask",
    b: int = 2,
    student: int = 4,
    teacher: int = 4,
    num_classes: int = 25,
    paired: bool = True,
) -> list[tuple[Any, Any, Any]]:
    size = b * num_classes * sum(widths)
    with recorded(divergence, "_prototype_divergence_fwd_kernel") as launches:
        divergence.diverge(
            torch.empty(student * size, device="meta"),
            torch.empty(teacher * size, device="meta"),
            torch.empty((len(widths), b, num_classes), dtype=torch.int64, device="meta"),
            torch.empty((b, teacher), dtype=torch.int64, device="meta") if paired else None,
            widths,
            student,
            range(teacher),
            teacher,
            axis,
            absent,
            1.0,
        )
    return launches
