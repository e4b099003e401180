"""Tables of a run beside its scores, such as what its networks cost: on the page and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..pipelines.tools.whole_files import write_whole


@dataclass(frozen=True)
class DetailTable:
    """Numbers by row and column.

    Attributes:
        title: meaning and unit of the numbers.
        columns: their names.
        rows: values by name, one for each column; NaN where there is none.
    """

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[float]]


def write_details(path: Path, tables: Sequence[DetailTable]) -> None:
    """Write ``details.csv``: one line ``table,row,column,value`` for every number, 4 decimals.

    A value that is not finite is left empty. The file appears whole or not at all.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "row", "column", "value"))
    for table in tables:
        for row, values in table.rows.items():
            for column, value in zip(table.columns, values, strict=True):
                cell = f"{value:.4f}" if math.isfinite(value) else ""
                writer.writerow((table.title, row, column, cell))
    write_whole(path, text.getvalue())
