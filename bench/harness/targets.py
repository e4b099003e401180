"""Targets of the fused operators, beside what they reached.

Targets are of both passes at the paper's size in bfloat16: MiT-B0, 1024 x 1024, B=2, M=4. They are
stated for an H200; on another GPU those that memory bounds are scaled by the bandwidth of a copy
measured there, of which an H100 has 30 % less. The regulariser and the segmentation loss wait for
instructions, of which both have the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bench.harness.report import FUSED, OFFICIAL, TORCH, OperatorRow
from bench.harness.rows import speed_up
from bench.harness.shapes import PAPER


class Target(NamedTuple):
    """A bound of a quantity: a field of ``OperatorRow``, else whom it is times as fast as."""

    op: str
    quantity: str
    bound: float

    @property
    def at_least(self) -> bool:
        """True if the bound is the least value, False if it is the greatest."""
        return self.quantity in ("copy_share", "official", "torch")

    def on(self, share: float) -> float:
        """The bound on a GPU with that share of the bandwidth of an H200."""
        by_memory = self.quantity == "ms" and self.op in ("proto_pool", "proto_kl", "mlp_head")
        return self.bound / share if by_memory else self.bound


H200_COPY_GB_PER_S = 4300.0  # of a device copy, read and write counted
MIB_PER_GB = 1e9 / 2**20
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
    Target("func_entropy", "peak_mib", 0.6 * MIB_PER_GB),
    Target("func_entropy", "official", 13),
    Target("func_entropy", "torch", 4),
    Target("seg_loss", "ms", 0.25),
    Target("seg_loss", "peak_mib", 0.15 * MIB_PER_GB),
    Target("seg_loss", "official", 8),
    Target("seg_loss", "torch", 3),
    # the parts of the network, of which the head, the norms and the convolution move memory alone
    Target("mlp_head", "ms", 1.2),
    Target("layer_norm", "copy_share", 0.7),
    Target("attention", "torch", 1.3),
    Target("depthwise_conv", "copy_share", 0.7),
    *(
        Target(op, "host_syncs", 0)
        for op in (
            *("proto_pool", "proto_kl", "ifv_map", "func_entropy", "seg_loss"),
            *("mlp_head", "layer_norm", "attention", "depthwise_conv"),
        )
    ),
)
# what a quantity is called, and how its values are written
TEXT = {
    "ms": ("device time", "{:.3g} ms"),
    "copy_share": ("of a copy's bandwidth", "{:.0%}"),
    "launches": ("launches", "{:.0f}"),
    "peak_mib": ("extra memory", "{:.0f} MiB"),
    "official": ("over the published loops", "{:.3g}x"),
    "torch": ("over the best of PyTorch", "{:.3g}x"),
    "host_syncs": ("waits of the host", "{:.0f}"),
}


def copy_of(rows: Sequence[OperatorRow]) -> float | None:
    """Bandwidth of a copy in GB/s, the median of what the processes measured."""
    found = [row.copy_gb_per_s for row in rows if row.copy_gb_per_s is not None]
    return statistics.median(found) if found else None


def scaled(copy: float | None) -> tuple[float, str]:
    """Share of an H200's bandwidth, and what is said of it."""
    if copy is None:
        return 1.0, "Times and rates are those of an H200: no copy was measured."
    return copy / H200_COPY_GB_PER_S, (
        f"Times and rates that memory bounds are those of an H200 times {copy:.0f} of "
        f"{H200_COPY_GB_PER_S:.0f} GB/s, the bandwidth of a copy."
    )


def lines(rows: Sequence[OperatorRow], device: str) -> list[str]:
    """A table in Markdown: target, measured, verdict.

    The row of an operator is its first fused one of both passes at the paper's size in bfloat16.

    Args:
        rows: rows of operators, with the copies that were measured beside them.
        device: the GPU's name.
    """
    share, said = scaled(copy_of(rows))
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
        what, form = TEXT[target.quantity]
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


def _row(op: str, rows: Sequence[OperatorRow]) -> OperatorRow | None:
    wanted = (op, FUSED, "fwd+bwd", "bfloat16")
    for row in rows:
        if (row.op, row.provider, row.mode, row.dtype) == wanted and str(PAPER) in row.case:
            return row
    return None


def _measured(target: Target, row: OperatorRow, rows: Sequence[OperatorRow]) -> float | None:
    if target.quantity in (OFFICIAL, TORCH):
        return speed_up(row, rows, target.quantity)
    value: float | None = getattr(row, target.quantity)
    return value
