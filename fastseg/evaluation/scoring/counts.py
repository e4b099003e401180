"""Counts of pixels per bin of images: a confusion matrix each, and the boundaries of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.distributed.ranks import Ranks
from fastseg.evaluation.scoring.boundary import boundary_counts


class Counts:
    """Counts of one network in one case, by bin; every image is in one bin.

    Attributes:
        confusion: ``[bins, K labels, K predictions]`` int64.
        boundary: ``[bins, K, 2]`` int64, see `boundary_counts`; None if it is not wanted.
        single: ``[K, K]`` float32, the sum over all batches in their order, see `PublishedConfig`.
    """

    def __init__(
        self, bins: int, num_classes: int, device: torch.device | str = "cpu", *, edges: bool = True
    ) -> None:
        k = num_classes
        self.confusion = torch.zeros(bins, k, k, dtype=torch.int64, device=device)
        self.boundary = torch.zeros(bins, k, 2, dtype=torch.int64, device=device) if edges else None
        self.single = torch.zeros(k, k, dtype=torch.float32, device=device)

    def add(self, predictions: Tensor, labels: Tensor, bins: Sequence[int]) -> None:
        """Count a batch.

        Args:
            predictions: ``[B, H, W]`` integer classes.
            labels: ``[B, H, W]`` integers; those outside ``[0, K)``, such as 255, are ignored.
            bins: bin of each image.
        """
        k, device = self.confusion.shape[1], self.confusion.device
        places = torch.tensor(bins, device=device)
        found = confusion_per_image(predictions, labels, k)
        self.confusion.index_add_(0, places, found)
        self.single += found.sum(0)
        if self.boundary is not None:
            self.boundary.index_add_(0, places, boundary_counts(predictions, labels, k))

    def total(self, ranks: Ranks) -> Counts:
        """The sum over all processes, on the host; collective. That in float32 stays its own."""
        self.confusion = ranks.total(self.confusion).cpu()
        self.single = self.single.cpu()
        if self.boundary is not None:
            self.boundary = ranks.total(self.boundary).cpu()
        return self


def confusion_per_image(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """``[B, K, K]`` int64: `ConfusionMatrix` of each image."""
    batch, k = len(labels), num_classes
    target = labels.to(torch.int64)
    places = torch.arange(batch, device=labels.device).view(-1, 1, 1) * k * k
    cells = places + target * k + predictions.to(torch.int64)
    # the others fall into one extra cell: no boolean indexing, hence no wait for a GPU
    cells = cells.where((target >= 0) & (target < k), batch * k * k).flatten()
    counts = torch.zeros(batch * k * k + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(0, cells, torch.ones_like(cells))[:-1].view(batch, k, k)
