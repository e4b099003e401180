"""Rows of whole training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness.rows import Row, read_rows

RANDOM = "random"


@dataclass
class StepRow(Row):
    """One provider at one setting and number of modalities; what was not measured is None.

    Of ``random`` M times, counts and shares are means over the numbers of modalities, which are
    equally likely, and memory is the largest.
    """

    setting: str
    modalities: str
    provider: str
    dtype: str
    threads: int | None = None
    status: str = "not run"
    images_per_s: float | None = None
    ms: float | None = None
    p20: float | None = None
    p80: float | None = None
    cpu_ms: float | None = None
    peak_mib: float | None = None
    launches: float | None = None
    host_syncs: float | None = None
    busy: float | None = None
    ohem: float | None = None
    logit: float | None = None
    hpdm: float | None = None
    rrm: float | None = None
    loss: float | None = None
    ways: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """Setting and modalities, equal for all providers of a comparison, compiled or not."""
        return self.setting.removesuffix(" compile"), self.modalities

    @property
    def key(self) -> tuple[object, ...]:
        """Fields that identify the row in a file."""
        return (self.setting, self.threads, self.provider, self.modalities)

    def rivals(self, rows: Sequence[StepRow], over: str) -> list[StepRow]:
        """The variants of another provider."""
        return [
            other
            for other in rows
            if other.group == self.group
            and other.threads == self.threads
            and other.provider.split()[0] == over
        ]


def mean_row(rows: Sequence[StepRow], batch: int) -> StepRow:
    """The row of a random number of modalities from those of every number.

    Args:
        rows: measured ones of a provider and a setting.
        batch: B.
    """
    first = rows[0]
    row = StepRow(first.setting, RANDOM, first.provider, first.dtype, first.threads, first.status)
    for name in ("ms", "p20", "p80", "cpu_ms", "launches", "host_syncs"):
        values = [getattr(other, name) for other in rows]
        if None not in values:
            setattr(row, name, sum(values) / len(values))
    if row.ms is not None:
        row.images_per_s = 1e3 * batch / row.ms
        times = [(other.ms or 0.0, other.busy) for other in rows]
        if all(busy is not None for _, busy in times):
            row.busy = sum(ms * (busy or 0.0) for ms, busy in times) / sum(ms for ms, _ in times)
    row.ways = first.ways
    row.peak_mib = max((other.peak_mib for other in rows if other.peak_mib), default=None)
    return row


def read_steps(path: Path) -> list[StepRow]:
    """The rows of a file, without those of no modalities that a setting begins with."""
    rows = read_rows(path, StepRow)
    ended = {row.key[:3] for row in rows if row.modalities}
    return [row for row in rows if row.modalities or row.key[:3] not in ended]
