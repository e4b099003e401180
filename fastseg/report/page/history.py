"""Curves out of the rows of ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]

# quantities of a training row that are not loss terms, with what they are called on the page
SPEED = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_s": "images per second",
    "data_wait": "share of time spent waiting for data",
}
_COUNTS = {"skipped", "replaced_samples"}
_NOT_LOSSES = {"kind", "stage", "step", "epoch", "seconds", "peak_mib", *_COUNTS, *SPEED}


@dataclass(frozen=True)
class Series:
    """One curve: ``steps [N]`` in ascending order and ``values [N]``, NaN where not finite."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def not_finite(self) -> int:
        """Number of values that are not finite."""
        return int(np.count_nonzero(~np.isfinite(self.values)))


def stages(history: Sequence[Row]) -> list[str]:
    """Names of the stages in order of appearance."""
    return list(dict.fromkeys(row["stage"] for row in history))


def rows_of(history: Sequence[Row], kind: str, **equal: Any) -> list[Row]:
    """Rows of a kind whose fields have the given values."""
    return [
        row
        for row in history
        if row["kind"] == kind and all(row.get(key) == value for key, value in equal.items())
    ]


def series(rows: Sequence[Row], key: str) -> Series:
    """The curve of one quantity over the rows that have it."""
    pairs = sorted((float(row["step"]), _value(row[key])) for row in rows if key in row)
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return Series(table[:, 0], table[:, 1])


def loss_terms(rows: Sequence[Row]) -> list[str]:
    """Quantities of training rows that are loss terms: their sum ``loss`` first."""
    names = dict.fromkeys(key for row in rows for key in row if key not in _NOT_LOSSES)
    terms = [
        name
        for name in names
        if all(isinstance(row[name], int | float | None) for row in rows if name in row)
    ]
    return sorted(terms, key=lambda name: name != "loss")


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving mean over a tenth of the curve; NaN values have no weight.

    The window shrinks at both ends, so that neither end is pulled towards the middle.
    """
    count = len(values)
    reach = max(1, count // 20)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    weights = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(count)
    half = np.minimum(np.minimum(index, count - 1 - index), reach)
    low, high = index - half, index + half + 1
    weight = weights[high] - weights[low]
    mean = (sums[high] - sums[low]) / np.maximum(weight, 1)
    return np.where(weight > 0, mean, np.nan)


def _value(value: Any) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan
