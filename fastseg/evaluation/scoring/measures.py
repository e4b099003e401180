"""Scores of counts, and how far they may be from those of other images: bootstrap intervals.

    IoU_k = n_kk / (row_k + column_k - n_kk)      F1_k = 2 n_kk / (row_k + column_k)
    pixel accuracy = sum_k n_kk / sum n           class accuracy_k = n_kk / row_k

of the confusion matrix n of labels (rows) and predictions (columns), summed over the images first.
Means ``_all`` are over all K classes, where one without a value counts as 0 (the papers' rule);
``miou_present`` leaves such a class out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastseg.evaluation.scoring.counts import Counts
from fastseg.pipelines.tools.keyed_random import words

MEANS = ("miou_all", "miou_present", "pixel_accuracy", "macc_all", "mf1_all", "boundary_miou_all")
PER_CLASS = ("iou", "f1", "boundary_iou")
_OUTER = (0.025, 0.975)
"""Quantiles of the resamples between which 95 % of them lie."""
_BOOTSTRAP = 0xB007
"""Purpose of the draws, part of their key."""


class Value(NamedTuple):
    """A score as a fraction with its interval; NaN where there is none."""

    score: str
    number: int | None
    """Class of the score; None for a mean."""
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measures:
    """Scores of one set of images, and of its resamples.

    Attributes:
        table: float64 ``[1 + R, S]``: the scores, then those of R resamples; S are the `MEANS`,
            then `PER_CLASS`, each with K values.
    """

    table: Tensor

    def __getitem__(self, score: str) -> float:
        """A mean by its name."""
        return float(self.table[0, MEANS.index(score)])

    def interval(self, score: str) -> tuple[float, float]:
        """The 95 % interval of a mean; NaN without resamples."""
        low, high = self._outer()[:, MEANS.index(score)].tolist()
        return low, high

    def values(self) -> Iterator[Value]:
        """All scores that have a value for the images or a class."""
        low, high = self._outer()
        rows = zip(self.table[0].tolist(), low.tolist(), high.tolist(), strict=True)
        k = (self.table.shape[1] - len(MEANS)) // len(PER_CLASS)
        names: list[tuple[str, int | None]] = [(name, None) for name in MEANS]
        names += [(name, number) for name in PER_CLASS for number in range(k)]
        for (score, number), row in zip(names, rows, strict=True):
            yield Value(score, number, *row)

    def _outer(self) -> Tensor:
        """``[2, S]``."""
        if len(self.table) == 1:
            return self.table.new_full((2, self.table.shape[1]), torch.nan)
        # a class may be absent from some resamples
        return self.table[1:].nanquantile(self.table.new_tensor(_OUTER), dim=0)


def weighted(measures: Sequence[Measures], weights: Sequence[float]) -> Measures:
    """The weighted mean of scores of the same images, such as over subsets.

    Of every score, not of the counts. A class's score is averaged where it has a value; a mean is
    NaN where one of them is. Resamples of the same images belong together, so that the interval is
    that of the weighted mean.
    """
    tables = torch.stack([one.table for one in measures])
    share = tables.new_tensor(weights).view(-1, 1, 1).expand_as(tables)
    share = share.where(tables.isfinite(), 0.0)
    table = (share * tables.nan_to_num(0.0)).sum(0) / share.sum(0)
    table[:, : len(MEANS)] += 0 * tables[..., : len(MEANS)].sum(0)
    # boundaries are counted in all of the cases or mean nothing
    k = (table.shape[1] - len(MEANS)) // len(PER_CLASS)
    table[:, -k:] += 0 * table[:, [MEANS.index("boundary_miou_all")]]
    return Measures(table)


def times(measures: Measures, factor: float) -> Measures:
    """The scores times a factor."""
    return Measures(factor * measures.table)


def measure(counts: Counts, weights: Tensor) -> Measures:
    """The scores of bins that are counted so many times.

    Args:
        counts: on the host.
        weights: float64 ``[1 + R, bins]``, see `whole` and `resampled`.
    """

    def summed(x: Tensor) -> Tensor:
        # sums of whole numbers below 2^53 are exact
        return (weights @ x.flatten(1).double()).view(-1, *x.shape[1:])

    edges = None if counts.boundary is None else summed(counts.boundary)
    return Measures(_table(summed(counts.confusion), edges))


def in_float32(measures: Measures, counts: Counts) -> Measures:
    """The scores of all images from counts and ratios in float32; resamples stay as they are."""
    edges = None if counts.boundary is None else counts.boundary.sum(0, keepdim=True).float()
    table = measures.table.clone()
    table[0] = _table(counts.single[None], edges)[0]
    return Measures(table)


def rounded(measures: Measures) -> Measures:
    """The scores to two decimals of a percent, as printed."""
    return Measures((100 * measures.table).round(decimals=2) / 100)


def _table(matrix: Tensor, boundary: Tensor | None) -> Tensor:
    """``[R, S]`` of confusions ``[R, K, K]`` and boundaries ``[R, K, 2]``, in their dtype."""
    hits, labels, found = matrix.diagonal(dim1=1, dim2=2), matrix.sum(2), matrix.sum(1)
    iou = _ratio(hits, found + labels - hits)
    f1, accuracy = _ratio(2 * hits, found + labels), _ratio(hits, labels)
    if boundary is None:
        edges, mean_edges = torch.full_like(iou, torch.nan), iou.new_full((len(iou),), torch.nan)
    else:
        edges = _ratio(boundary[..., 0], boundary[..., 1])
        mean_edges = _mean_of_all(edges)
    means = (
        _mean_of_all(iou),
        iou.nanmean(1),
        _ratio(hits.sum(1), labels.sum(1)),
        _mean_of_all(accuracy),
        _mean_of_all(f1),
        mean_edges,
    )
    return torch.cat([torch.stack(means, dim=1), iou, f1, edges], dim=1)


def whole(chosen: Sequence[bool]) -> Tensor:
    """``[1, bins]``: the chosen bins once each."""
    return torch.tensor([chosen], dtype=torch.float64)


def resampled(chosen: Sequence[bool], resamples: int, seed: int) -> Tensor:
    """``[1 + R, bins]``: the chosen bins once, then R draws of as many of them with replacement.

    Draws depend on seed, number of the resample and number of chosen bins alone.
    """
    places = np.flatnonzero(chosen)
    rows = [np.asarray(chosen, dtype=np.float64)]
    for number in range(resamples if len(places) else 0):
        drawn = words(len(places), seed, _BOOTSTRAP, number) % np.uint64(len(places))
        times = np.bincount(drawn.astype(np.int64), minlength=len(places))
        row = np.zeros(len(chosen))
        row[places] = times
        rows.append(row)
    return torch.from_numpy(np.stack(rows))


def _ratio(part: Tensor, of: Tensor) -> Tensor:
    return torch.where(of > 0, part / of, torch.nan)


def _mean_of_all(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0).mean(1)
