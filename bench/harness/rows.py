"""Rows of operators and of whole steps: read from files, compared with rivals, written as CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar


class Row:
    """One provider of a comparison; the dataclass of a table adds what it measures.

    Attributes:
        status: ``ok``, or why there are no numbers.
        ms: median milliseconds, None where they were not measured.
        noise: relative difference between two measurements in a row, None where there was one.
    """

    status: str
    ms: float | None
    noise: float | None = None

    @property
    def group(self) -> tuple[str, ...]:
        """Fields that are equal for all providers of a comparison."""
        raise NotImplementedError

    @property
    def key(self) -> tuple[object, ...]:
        """Fields that identify the row in a file."""
        raise NotImplementedError

    def rivals(self, rows: Sequence[Any], over: str) -> list[Any]:
        """The rows that this row is compared with.

        Args:
            rows: all rows of a table.
            over: the rivals, by the name that the table gives them.
        """
        raise NotImplementedError


R = TypeVar("R", bound=Row)


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """The rows of a file that processes append lines of JSON to, compared ones together.

    The last line of a row counts: the first is written before it is measured.
    """
    last = {row.key: row for row in (kind(**json.loads(line)) for line in complete_lines(path))}
    groups: dict[tuple[str, ...], list[R]] = {}
    for row in last.values():
        groups.setdefault(row.group, []).append(row)
    return [row for group in groups.values() for row in group]


def complete_lines(path: Path) -> list[str]:
    """The lines of a file that another process may be writing to."""
    return path.read_text().rpartition("\n")[0].splitlines()


def speed_up(row: R, rows: Sequence[R], over: str, clock: str = "ms") -> float | None:
    """Factor by which a row is faster than the fastest of its rivals.

    Args:
        row: the row to compare.
        rows: all rows of its table.
        over: the rivals, as :meth:`Row.rivals` takes them.
        clock: name of the field that holds the times.

    Returns:
        The ratio of the times; 1 inside the noise, None where there is nothing to compare with.
    """

    def time(other: R) -> float:
        return float(getattr(other, clock))

    timed = [x for x in row.rivals(rows, over) if getattr(x, clock) is not None]
    if getattr(row, clock) is None or not timed:
        return None
    best = min(timed, key=time)
    ratio = time(best) / time(row)
    noise = max(row.noise or 0, best.noise or 0)
    return 1.0 if abs(math.log(ratio)) <= noise else ratio


def write_csv(path: Path, kind: type[Any], rows: Sequence[Any], about: dict[str, str]) -> None:
    """One line per row, a dataclass of that kind; the machine's columns last."""
    names = [field.name for field in fields(kind)]
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*names, *about])
        for row in rows:
            values = asdict(row)
            table.writerow([_rounded(values[name]) for name in names] + [*about.values()])


def _rounded(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else "" if value is None else value
