"""The table of every modality subset, in the papers' layout, as plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from .results import MEAN, SubsetResult, by_model

Score = Literal["miou_all", "miou_present"]
_ABSENT = "-"


def table_rows(
    results: Sequence[SubsetResult], order: Sequence[str], score: Score = "miou_all"
) -> dict[str, list[float]]:
    """Scores in points: ``{row name: one value per subset of order, then their mean}``.

    One row per network; if both are there, ``gain`` = student - teacher closes them. A subset
    that was not scored is NaN, and so is a mean it would belong to.
    """
    rows: dict[str, list[float]] = {}
    for model, group in by_model(results).items():
        scores = [
            100 * getattr(group[name], score) if name in group else math.nan for name in order
        ]
        rows[model] = [*scores, sum(scores) / len(scores) if scores else math.nan]
    if "teacher" in rows and "student" in rows:
        pairs = zip(rows["student"], rows["teacher"], strict=True)
        rows["gain"] = [student - teacher for student, teacher in pairs]
    return rows


def format_table(
    results: Sequence[SubsetResult], order: Sequence[str], score: Score = "miou_all"
) -> str:
    """The table as aligned ASCII text without a trailing newline, in points with 2 decimals.

    Columns: the subsets of ``order``, then Mean; rows as in `table_rows`, a missing value as
    ``-``. With four modalities (15 subsets) and two networks a line takes at most 119 characters.
    """
    lines = [["", *order, MEAN]]
    for name, values in table_rows(results, order, score).items():
        sign = "+" if name == "gain" else ""
        cells = [f"{value:{sign}.2f}" if math.isfinite(value) else _ABSENT for value in values]
        lines.append([name, *cells])
    first = max(len(line[0]) for line in lines)
    width = max(len(cell) for line in lines for cell in line[1:])
    return "\n".join(
        " ".join([line[0].ljust(first), *(cell.rjust(width) for cell in line[1:])])
        for line in lines
    )
