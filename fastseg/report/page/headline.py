"""The head of the page: one sentence and three cards."""

from __future__ import annotations

import math

from markupsafe import Markup

from ..results import RunReport, subset_order
from ..table import table_rows
from .markup import css, fill, missing
from .theme import roles


def headline(report: RunReport) -> Markup:
    """The mean over all subsets, the score of all modalities, and that of the weakest subset."""
    order = subset_order(report.results)
    rows = table_rows(report.results, order, compared=report.compared)
    gain = rows.pop("gain", None)
    if not rows:
        return missing("No network has been evaluated yet.")
    full = max(order, key=len)
    at = order.index(full)
    weakest = {name: _weakest(values[:-1]) for name, values in rows.items()}
    where = ", ".join(f"{name} {order[low]}" for name, low in weakest.items())
    cards = {
        f"Mean over {len(order)} subsets": {name: values[-1] for name, values in rows.items()},
        f"All modalities ({full})": {name: values[at] for name, values in rows.items()},
        f"Weakest subset ({where})": {name: rows[name][low] for name, low in weakest.items()},
    }
    colours = roles(rows, report.compared)
    first, second = (gain and report.compared) or ("", next(iter(rows)))
    mean, score = rows[second][-1], rows[second][at]
    finite = gain is not None and math.isfinite(gain[-1]) and math.isfinite(gain[at])
    return fill(
        "headline.html",
        name=second,
        reference=first,
        scored=math.isfinite(mean) and math.isfinite(score),
        count=len(order),
        full=full,
        mean=mean,
        all=score,
        gain=gain[-1] if gain and finite else None,
        gain_all=gain[at] if gain and finite else None,
        cards=[
            {
                "title": title,
                "scores": [(name, value, css(colours[name])) for name, value in scores.items()],
                "gain": scores[second] - scores[first] if gain else None,
            }
            for title, scores in cards.items()
        ],
    )


def _weakest(scores: list[float]) -> int:
    """Position of the lowest finite score; 0 if there is none."""
    return min(range(len(scores)), key=lambda i: scores[i] if math.isfinite(scores[i]) else 1e9)
