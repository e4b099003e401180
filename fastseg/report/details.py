"""Tables of a run beside its scores, such as what its networks cost: on the page and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..pipelines.tools.whole_files import write_whole

_COLUMNS = ("table", "row", "column", "value")


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
    writer.writerow(_COLUMNS)
    for table in tables:
        for row, values in table.rows.items():
            for column, value in zip(table.columns, values, strict=True):
                cell = f"{value:.4f}" if math.isfinite(value) else ""
                writer.writerow((table.title, row, column, cell))
    write_whole(path, text.getvalue())


def read_details(path: Path) -> list[DetailTable]:
    """Tables of a `write_details` file, to 4 decimals.

    Raises:
        ValueError: it is not one.
    """
    tables: dict[str, dict[str, dict[str, float]]] = {}
    try:
        lines = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
        head, *rows = list(lines)
        if head != list(_COLUMNS):
            raise ValueError(f"its first line should be {','.join(_COLUMNS)}")
        for title, row, column, cell in rows:
            values = tables.setdefault(title, {}).setdefault(row, {})
            if column in values:
                raise ValueError(f"{title!r} has two numbers for {row!r}, {column!r}")
            values[column] = float(cell) if cell else math.nan
        return [_table(title, found) for title, found in tables.items()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a details file of a run ({error})") from None


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> DetailTable:
    columns = tuple(next(iter(rows.values())))
    if any(tuple(values) != columns for values in rows.values()):
        raise ValueError(f"the rows of {title!r} have different columns")
    return DetailTable(title, columns, {name: tuple(v.values()) for name, v in rows.items()})
