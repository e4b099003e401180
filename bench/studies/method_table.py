"""The table of a comparison: rows of runs to means, deviations and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

BASELINE = "dropout"
RATES = (0.2, 0.1, 0.05)
_ABOUT = ("method", "seed", "missing", "command")

Row = Mapping[str, str]


def scores_of(row: Row) -> dict[str, float]:
    """MIoU of every subset of a row, in percent, with ``mean``, ``full`` and ``E(p)`` behind."""
    subsets = {name: float(cell) for name, cell in row.items() if name not in _ABOUT}
    full = max(subsets, key=len)
    scores = dict(subsets)
    scores["mean"] = statistics.mean(subsets.values())
    scores["full"] = subsets[full]
    return scores | {f"E({p:g})": expectation(subsets, p) for p in RATES}


def expectation(subsets: Mapping[str, float], p: float) -> float:
    """Expected score if each modality is missing with probability ``p``, at least one is there.

        E(p) = sum_D w_D mIoU_D / sum_D w_D,   w_D = p^|D| (1 - p)^(N - |D|)

    over the sets D of missing modalities. Source: arXiv:2503.18445; its code fixes N at 4, here it
    is the number of modalities.

    Args:
        subsets: score by the letters of the modalities that are there, all 2^N - 1 of them.
        p: probability, 0 to below 1.

    Raises:
        ValueError: a subset is missing.
    """
    number = max(map(len, subsets))
    if len(subsets) != 2**number - 1:
        raise ValueError(
            f"expected {2**number - 1} subsets of {number} modalities, got {len(subsets)}"
        )
    weights = {s: p ** (number - len(s)) * (1 - p) ** len(s) for s in subsets}
    return sum(weights[s] * subsets[s] for s in subsets) / sum(weights.values())


def paired_differences(rows: Sequence[Row], method: str, score: str) -> list[float]:
    """Score of a method minus that of the baseline, for every seed that both have."""
    by_run = {(row["method"], row["seed"]): row for row in rows}
    return [
        scores_of(row)[score] - scores_of(by_run[BASELINE, seed])[score]
        for (name, seed), row in by_run.items()
        if name == method and (BASELINE, seed) in by_run
    ]


def format_table(rows: Sequence[Row]) -> str:
    """Markdown: methods in order of first appearance; the deviation of one seed is a dash.

    Raises:
        ValueError: there are no rows, or missing modalities were treated in several ways.
    """
    ways = sorted({row["missing"] for row in rows})
    if len(ways) != 1:
        found = " and ".join(ways) or "no rows"
        raise ValueError(f"a table needs rows with one way of missing modalities, found {found}")
    names = list(scores_of(rows[0]))
    head = ["method", "seeds", *names, "mean - dropout", "full - dropout"]
    lines = [f"Missing modalities: {ways[0]}.", "", "| " + " | ".join(head) + " |"]
    lines.append("|---|" + "--:|" * (len(head) - 1))
    for method in dict.fromkeys(row["method"] for row in rows):
        scores = [scores_of(row) for row in rows if row["method"] == method]
        cells = [method, str(len(scores))]
        cells += [spread([s[name] for s in scores]) for name in names]
        for name in ("mean", "full"):
            pairs = [] if method == BASELINE else paired_differences(rows, method, name)
            cells.append(spread(pairs, "+.2f"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """``mean ± standard deviation`` (of the sample); a dash for what there is not."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):{form}} ± " + (
        f"{deviation:.2f}" if math.isfinite(deviation) else "-"
    )
