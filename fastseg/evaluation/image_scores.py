"""What a pass over a split finds besides its sums: a score for each image, counts by condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastseg import kernels
from fastseg.engine.context import RunContext
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.protocols.conditions import ALL, groups
from fastseg.evaluation.scoring.scorer import Cell
from fastseg.evaluation.subsets import run_subsets
from fastseg.pipelines.datasets.path_templates import case_of, conditions_of
from fastseg.pipelines.datasets.split_files import SplitFiles
from fastseg.report.details import DetailTable

_EXTREMES = 2
"""Images of the lowest scores that the report shows, and of the highest."""


class ImageScores:
    """Scores of the images of a split by one network; every process counts its own.

    Args:
        context: of the run.
        files: the split.
    """

    def __init__(self, context: RunContext, files: SplitFiles) -> None:
        self._context, self._spec = context, files.spec
        self._places = {name: place for place, name in enumerate(files.sample_ids)}
        self._cells: list[Cell] = [
            (*conditions_of(files.spec, name), case_of(files.spec, name))
            for name in files.sample_ids
        ]
        self._numbers = {cell: number for number, cell in enumerate(dict.fromkeys(self._cells))}
        self._subsets = [subset.name for subset in run_subsets(context)]
        k = context.num_classes
        shape = (len(self._subsets), len(self._numbers), k, k)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=context.device)
        self._single = torch.zeros(len(files), k, dtype=torch.float64, device=context.device)

    def count(self, subset: str, logits: Tensor, labels: Tensor, ids: Sequence[str]) -> Tensor:
        """Count a batch with one subset of the modalities.

        Args:
            subset: its letters.
            logits: ``[B, K, h, w]``.
            labels: ``[B, H, W]``, see `kernels.upsample_confusion`.
            ids: names of the samples.

        Returns:
            ``[K, K]`` int64, the sum over the batch.
        """
        number = self._subsets.index(subset)
        parts = []
        for row, name in enumerate(ids):
            own = slice(row, row + 1)
            found = kernels.upsample_confusion(logits[own], labels[own], logits.shape[1])
            self._counts[number, self._numbers[self._cells[self._places[name]]]] += found
            if number == len(self._subsets) - 1:
                hits = found.diagonal().double()
                self._single[self._places[name]] = hits / (found.sum(0) + found.sum(1) - hits)
            parts.append(found)
        return torch.stack(parts).sum(0)

    def gather(self) -> None:
        """Add up what the processes have counted; collective."""
        ranks = self._context.ranks
        self._counts = ranks.total(self._counts).cpu()
        # of the others an image has zeros; a class that it has not is NaN, which a sum keeps
        means = ranks.reduce(self._single.nanmean(1).tolist())
        self.scores = [mean * ranks.world for mean in means]

    def by_condition(self, network: str) -> DetailTable | None:
        """The mIoU by condition and subset in points; None where a data set names no condition."""
        if not (self._spec.conditions or self._spec.cases):
            return None
        rows = {}
        for name, chosen in groups(self._spec).items():
            number = sum(map(chosen, self._cells))
            among = [place for cell, place in self._numbers.items() if chosen(cell)]
            if number and name != ALL:
                rows[f"{name}, {number} sample{'s' * (number != 1)}"] = [
                    100 * _miou(counts[among].sum(0)) for counts in self._counts
                ]
        title = (
            f"mIoU of the {network} by condition and subset\n"
            "Over the classes that occur in a group."
        )
        return DetailTable(title, tuple(self._subsets), rows)


def chosen_samples(
    scores: Mapping[str, Sequence[float]], total: int, wanted: int
) -> dict[int, str]:
    """Samples that the report shows, and why: the worst and best ones, and some of the others.

    Args:
        scores: a score per sample of the network that judges, by its name; empty if none does.
        total: samples of the split.
        wanted: how many are spread evenly over the split; 0: none is shown.
    """
    chosen: dict[int, str] = {}
    if not wanted:
        return chosen
    for network, values in scores.items():
        known = [i for i, value in enumerate(values) if math.isfinite(value)]
        known.sort(key=lambda i: values[i])
        some = min(_EXTREMES, len(known) // 2)
        for kind, places in (("worst", known[:some]), ("best", known[len(known) - some :][::-1])):
            for rank, place in enumerate(places, start=1):
                chosen[place] = (
                    f"{'' if rank == 1 else f'{rank}nd '}{kind} of {len(known)} samples by the "
                    f"{network} with all sensors: mIoU {100 * values[place]:.2f} over the classes "
                    "in it"
                )
    # the middle of equal parts of the sorted list: one sample of each condition, about
    spread = min(wanted, total)
    for part in range(spread):
        chosen.setdefault(int((part + 0.5) * total / spread), "")
    return chosen


def _miou(counts: Tensor) -> float:
    found = ConfusionMatrix(len(counts))
    found.counts = counts
    return found.scores().miou_present
