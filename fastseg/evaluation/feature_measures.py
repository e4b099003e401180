"""What the features of each sensor say: how like the fused ones, how uneven, how like another's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastseg import kernels
from fastseg.engine.context import RunContext
from fastseg.methods.dominance import agreement_with_fusion
from fastseg.models import Segmenter
from fastseg.pipelines import Batch
from fastseg.report.details import DetailTable

_TITLE = """\
Features of the sensors, mean over the {samples} samples of the pictures and all levels
fusion: cosine of a sensor's features with the fused ones
entropy: functional entropy of the features' magnitude over the pixels, divided by its mean
prototypes: cosine of the two networks' prototypes, mean over the classes in the label"""


class FeatureMeasures:
    """Means over some samples; networks without features of each sensor are left out.

    Args:
        context: of the run.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._found: dict[str, list[list[float]]] = defaultdict(list)
        self._samples = 0

    def add(self, networks: Mapping[str, Segmenter], batch: Batch) -> None:
        """Add a batch of one sample with all sensors."""
        images, labels = (x.to(self._context.device) for x in (batch.images, batch.labels))
        features: dict[str, list[Tensor]] = {}
        for name, network in networks.items():
            if not network.features_by_modality:
                continue
            with torch.no_grad(), self._context.autocast():
                levels = list(network(images).features)
            if levels and all(len(level) == len(images) for level in levels):
                features[name] = [level.float() for level in levels]
        for name, levels in features.items():
            self._found[f"{name} fusion"].append(agreement_with_fusion(levels)[:, 0].tolist())
            self._found[f"{name} entropy"].append(_entropy(levels).tolist())
        pair = self._context.method.compared or ()
        if pair and all(name in features for name in pair):
            first, second = (features[name] for name in pair)
            if [x.shape for x in first] == [x.shape for x in second]:
                likeness = _likeness(first, second, labels, self._context.num_classes)
                self._found[f"{pair[0]} and {pair[1]} prototypes"].append(likeness.tolist())
        self._samples += 1

    def table(self) -> DetailTable | None:
        """A row for each sensor; None if no network had features of each."""
        if not self._found:
            return None
        columns = [_mean(rows) for rows in self._found.values()]
        names = [modality.name for modality in self._context.modalities]
        rows = dict(zip(names, map(list, zip(*columns, strict=True)), strict=True))
        return DetailTable(_TITLE.format(samples=self._samples), tuple(self._found), rows)


def _entropy(levels: Sequence[Tensor]) -> Tensor:
    """``[M]`` of levels ``[M, 1, C, h, w]``."""
    means = []
    for level in levels:
        size = level[:, 0].abs().flatten(2)
        entropy, mean = kernels.functional_entropy(size, dim=2), size.mean(2)
        means.append(entropy.mean(1) / mean.mean(1).clamp_min(torch.finfo(mean.dtype).tiny))
    return torch.stack(means).mean(0)


def _likeness(
    first: Sequence[Tensor], second: Sequence[Tensor], labels: Tensor, num_classes: int
) -> Tensor:
    """``[M]``: cosine of prototypes over the classes that a level has; NaN if none has one."""
    cosines = []
    for one, other in zip(first, second, strict=True):
        own, counts = kernels.masked_prototype_pool(one, labels, num_classes)
        others, _ = kernels.masked_prototype_pool(other, labels, num_classes)
        cosines.append(torch.cosine_similarity(own, others, dim=-1)[:, 0, counts[0] > 0].mean(1))
    return torch.stack(cosines).nanmean(0)


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Means of columns over the rows that are finite there."""
    found = []
    for column in zip(*rows, strict=True):
        finite = [value for value in column if math.isfinite(value)]
        found.append(sum(finite) / len(finite) if finite else math.nan)
    return found
