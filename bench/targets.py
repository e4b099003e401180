"""What the fused operators are to reach on one H200, beside what they reached.

All are of both passes at the paper's size in bfloat16: MiT-B0, 1024 x 1024, B=2, M=4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.report import FUSED, Row, speed_up
from bench.shapes import PAPER


class Target(NamedTuple):
    """A bound of a quantity: a field of ``Row``, or ``official`` or ``torch`` for a speed-up."""

    op: str
    quantity: str
    bound: float

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.quantity in ("copy_share", "official", "torch")


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


def lines(rows: Sequence[Row]) -> list[str]:
    """A table in Markdown: target, measured, verdict.

    The row of an operator is its first fused one of both passes at the paper's size in bfloat16.
    """
    found = [
        "## Targets",
        "",
        f"Both passes of the fused operators at {PAPER} in bfloat16, on one H200.",
        "",
        "| operator | case | quantity | target | measured | |",
        "|---|---|---|--:|--:|---|",
    ]
    for target in sorted(TARGETS, key=lambda target: target.op):
        row = _row(target.op, rows)
        what, form = _TEXT[target.quantity]
        bound = ("at least " if target.at_least else "at most ") + form.format(target.bound)
        measured = None if row is None else _measured(target, row, rows)
        if measured is None:
            cells = ["", "not measured"]
        else:
            reached = measured >= target.bound if target.at_least else measured <= target.bound
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
