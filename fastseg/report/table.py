"""The table of every modality subset, in the papers' layout, as plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from .details import DetailTable
from .results import MEAN, SubsetResult, by_model

Score = Literal["miou_all", "miou_present"]
_ABSENT = "-"


def table_rows(
    results: Sequence[SubsetResult],
    order: Sequence[str],
    score: Score = "miou_all",
    compared: Sequence[str] | None = None,
) -> dict[str, list[float]]:
    """Scores in points: ``{row name: one value per subset of order, then their mean}``.

    One row per network; if both that are ``compared`` are there, ``gain`` = second - first closes
    them. A subset that was not scored is NaN, and so is a mean it would belong to.
    """
    rows: dict[str, list[float]] = {}
    for model, group in by_model(results).items():
        scores = [
            100 * getattr(group[name], score) if name in group else math.nan for name in order
        ]
        rows[model] = [*scores, sum(scores) / len(scores) if scores else math.nan]
    if compared is not None and rows.keys() >= set(compared):
        pairs = zip(*(rows[name] for name in compared), strict=True)
        rows["gain"] = [second - first for first, second in pairs]
    return rows


def format_table(
    results: Sequence[SubsetResult],
    order: Sequence[str],
    score: Score = "miou_all",
    compared: Sequence[str] | None = None,
) -> str:
    """The table as aligned ASCII text without a trailing newline, in points with 2 decimals.

    Columns: the subsets of ``order``, then Mean; rows as in `table_rows`, a missing value as
    ``-``. With four modalities (15 subsets) and two networks a line takes at most 119 characters.
    """
    lines = [["", *order, MEAN]]
    for name, values in table_rows(results, order, score, compared).items():
        sign = "+" if name == "gain" else ""
        cells = [f"{value:{sign}.2f}" if math.isfinite(value) else _ABSENT for value in values]
        lines.append([name, *cells])
    return aligned(lines)


def format_details(detail: DetailTable) -> str:
    """A table beside the scores as aligned ASCII text under its title."""
    lines = [["", *detail.columns]]
    for name, values in detail.rows.items():
        lines.append([name, *(f"{x:.2f}" if math.isfinite(x) else _ABSENT for x in values)])
    return f"{detail.title}\n{aligned(lines)}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first to the left, the others to the right and of one width."""
    first = max(len(line[0]) for line in lines)
    width = max(len(cell) for line in lines for cell in line[1:])
    return "\n".join(
        " ".join([line[0].ljust(first), *(cell.rjust(width) for cell in line[1:])])
        for line in lines
    )
