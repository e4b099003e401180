"""Segmentation scores: additive counts first, ratios last, so that sums over ranks are exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastseg import kernels


@dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix, as fractions.

    Attributes:
        iou: K values; NaN for a class that is neither in the labels nor in the predictions.
        miou_all: mean over all K classes with such a class counted as 0 (the papers' definition).
        miou_present: mean over the other classes only; NaN if there is none.
    """

    iou: tuple[float, ...]
    miou_all: float
    miou_present: float


class ConfusionMatrix:
    """Pixel counts ``[K labels, K predictions]`` in int64, accumulated on the device."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count every pixel whose label lies in ``[0, K)``; 255 and other values are ignored.

        Args:
            predictions: integer classes ``0..K-1``, any shape.
            labels: integer labels of the same shape.
        """
        if predictions.shape != labels.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} differ"
            )
        k = self.num_classes
        labels = labels.to(torch.int64)
        # ignored pixels fall into one extra cell: no boolean indexing, hence no wait for a GPU
        cell = torch.where(
            (labels >= 0) & (labels < k), labels * k + predictions.to(torch.int64), k * k
        )
        counts = torch.bincount(cell.flatten(), minlength=k * k + 1)
        self.counts += counts[: k * k].view(k, k)

    def update_from(self, logits: Tensor, labels: Tensor) -> None:
        """Count the predictions of logits ``[B, K, h, w]``, upsampled to labels ``[B, H, W]``.

        On a GPU the logits at the size of the labels never exist.
        """
        self.counts += kernels.upsample_confusion(logits, labels, self.num_classes)

    def scores(self) -> Scores:
        """IoU_k = n_kk / (row_k + column_k - n_kk) and its two means."""
        counts = self.counts.double().cpu()
        hits = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hits
        iou = torch.where(union > 0, hits / union, torch.nan)
        return Scores(
            iou=tuple(iou.tolist()),
            miou_all=float(iou.nan_to_num(0.0).mean()),
            miou_present=float(iou.nanmean()),
        )
