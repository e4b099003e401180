"""Scores of a network on every modality subset, from one encoding per image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastseg import kernels
from fastseg.context import RunContext
from fastseg.metrics import ConfusionMatrix
from fastseg.models import SegFormer
from fastseg.pipelines import Batch
from fastseg.subsets import Subset


class SubsetDecoder:
    """Predictions for any subset of the modalities of one batch.

    The encoder treats every modality alone and the fusion is a mean, so each image is encoded
    once and only fusion and head run per subset: M encoder passes instead of M 2^(M-1).

    With ``drop`` the mean runs over the present modalities; with ``zero`` over all of them, a
    missing one giving the features of an image of zeros (after normalisation).
    """

    def __init__(self, model: SegFormer, images: Tensor, missing: str) -> None:
        self.model = model
        self.num_modalities = images.shape[0]
        self.size = images.shape[-2:]
        self.features = model.encode(images)
        self.blank = model.encode(torch.zeros_like(images[:1])) if missing == "zero" else None

    def logits(self, subset: Subset) -> Tensor:
        """Logits ``[B, K, h, w]`` at stride 4 with the modalities of ``subset``."""
        return self.model.decode([self._fuse(level, subset) for level in range(len(self.features))])

    def predict(self, subset: Subset) -> Tensor:
        """Most likely class ``[B, H, W]`` (uint8) with the modalities of ``subset``."""
        return kernels.upsample_argmax(self.logits(subset), self.size)

    def _fuse(self, level: int, subset: Subset) -> Tensor:
        features = self.features[level][list(subset.positions)]
        if self.blank is None:
            return features.mean(dim=0)
        absent = self.num_modalities - len(subset.positions)
        return (features.sum(dim=0) + absent * self.blank[level][0]) / self.num_modalities


def evaluate_subsets(
    context: RunContext, model: SegFormer, batches: Iterable[Batch]
) -> dict[str, ConfusionMatrix]:
    """One confusion matrix per subset of the run over all batches, the full set last.

    The batches are those of this process, the matrices are summed over all: exactly once per
    sample, whatever the number of processes. The network, a whole one, is left in eval mode.
    """
    model.eval()
    matrices = {
        subset.name: ConfusionMatrix(context.num_classes, context.device)
        for subset in context.subsets
    }
    for batch in batches:
        batch = batch.to(context.device)
        with torch.no_grad(), context.autocast():
            decoder = SubsetDecoder(model, batch.images, context.config.evaluation.missing)
            for subset in context.subsets:
                matrices[subset.name].update_from(decoder.logits(subset), batch.labels)
    together = torch.stack([matrix.counts for matrix in matrices.values()])
    for matrix, counts in zip(matrices.values(), context.ranks.total(together), strict=True):
        matrix.counts = counts
    return matrices


def limited(batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """The first ``samples`` samples of some batches; the last batch may be cut."""
    left = samples
    if left <= 0:
        return
    for batch in batches:
        count = len(batch.sample_ids)
        yield batch.first(left) if count > left else batch
        left -= count
        # before the next batch is made, which nobody wants
        if left <= 0:
            return
