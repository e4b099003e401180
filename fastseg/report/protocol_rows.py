"""Scores of protocols in one long file: a row for every score of every network in every case."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ..pipelines.tools.whole_files import write_whole


@dataclass(frozen=True)
class ProtocolRow:
    """One score.

    Attributes:
        protocol: its name.
        model: the network's name.
        trained: what the network has seen of missing sensors and faults in its training.
        corruption: faults of the sensors, as in ``results.csv``.
        missing: what becomes of missing modalities: ``none``, ``drop``, ``zero``, or ``zero 0.25``
            where that share of their elements is zeroed.
        setting: what else tells the rows of a protocol apart, such as ``fog``; or nothing.
        subset: letters of the modalities that are whole, ``Mean``, or an expectation as ``E(0.1)``.
        samples: number of samples.
        score: its name, such as ``miou_all`` or ``iou``.
        name: class of a score per class; empty for others.
        value: the score as a fraction.
        low: lower end of its 95 % interval; NaN if none was asked for.
        high: upper end.
    """

    protocol: str
    model: str
    trained: str
    corruption: str
    missing: str
    setting: str
    subset: str
    samples: int
    score: str
    name: str
    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def place(self) -> tuple[str | int, ...]:
        """All but the numbers: what the row is about."""
        *words, _, _, _ = astuple(self)
        return tuple(words)


COLUMNS = tuple("class" if f.name == "name" else f.name for f in fields(ProtocolRow))


def write_protocol_rows(path: Path, rows: Iterable[ProtocolRow]) -> None:
    """Write the rows under their column names: percent with 4 decimals, empty where there is none.

    The file appears whole or not at all.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        *words, value, low, high = astuple(row)
        writer.writerow([*words, *map(_percent, (value, low, high))])
    write_whole(path, text.getvalue())


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4f}" if math.isfinite(fraction) else ""
