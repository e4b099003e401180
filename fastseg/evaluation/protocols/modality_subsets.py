"""Scores of a network on every modality subset, from one encoding per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fastseg.engine.context import RunContext
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.subsets import Subset, run_subsets
from fastseg.models import Segmenter
from fastseg.pipelines import Batch

CountImages = Callable[[str, Tensor, Tensor, Sequence[str]], Tensor]
"""Counts ``[K, K]`` of a subset's logits, labels and names of a batch, see `ImageScores.count`."""


def evaluate_subsets(
    context: RunContext,
    model: Segmenter,
    batches: Iterable[Batch],
    count: CountImages | None = None,
) -> dict[str, ConfusionMatrix]:
    """One confusion matrix per subset of the run over all batches, the full set last.

    The batches are those of this process, the matrices are summed over all: exactly once per
    sample, whatever the number of processes. The network, a whole one, is left in eval mode.
    With ``count`` that is what counts, and may keep what it finds of each image.
    """
    model.eval()
    matrices = {
        subset.name: ConfusionMatrix(context.num_classes, context.device)
        for subset in run_subsets(context)
    }
    for batch in batches:
        batch = batch.to(context.device)
        with torch.no_grad(), context.autocast():
            scored = logits_of_subsets(context, model, batch.images, run_subsets(context))
            for subset, logits in scored:
                matrix = matrices[subset.name]
                if count is None:
                    matrix.update_from(logits, batch.labels)
                else:
                    matrix.counts += count(subset.name, logits, batch.labels, batch.sample_ids)
    together = torch.stack([matrix.counts for matrix in matrices.values()])
    for matrix, counts in zip(matrices.values(), context.ranks.total(together), strict=True):
        matrix.counts = counts
    return matrices


def logits_of_subsets(
    context: RunContext, model: Segmenter, images: Tensor, subsets: Sequence[Subset]
) -> Iterator[tuple[Subset, Tensor]]:
    """Logits ``[B, K, h, w]`` of ``images [M, B, 3, H, W]`` with one subset after the other."""
    positions = [subset.positions for subset in subsets]
    missing = context.config.evaluation.missing
    yield from zip(subsets, model.logits_of_subsets(images, positions, missing), strict=True)


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
