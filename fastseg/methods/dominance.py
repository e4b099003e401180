"""Dominant modalities of a sample: those whose features are most like the fused ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@torch.no_grad()
def agreement_with_fusion(features: Sequence[Tensor]) -> Tensor:
    """Mean over the levels of the cosine between a modality's features and the fused ones.

        s[m, b] = 1/L sum_i cos( vec(G_i[m, b]), vec(1/M sum_n G_i[n, b]) )

    Args:
        features: levels ``G_i [M, B, C_i, h_i, w_i]``, any float dtype.

    Returns:
        ``[M, B]`` in float32 (float64 for float64 features); features of zeros have a cosine of 0.

    Source: the selection of modalities (ASM) of RobustSeg, CVPR 2026. The paper compares unimodal
    and fused features; the mean over the levels is ours.
    """
    cosines = []
    for level in features:
        # one vector per image, in the order of the memory
        vectors = level.movedim(2, -1).flatten(2)
        vectors = vectors.to(torch.promote_types(level.dtype, torch.float32))
        fused = vectors.mean(0)
        dot = torch.linalg.vecdot(vectors, fused.expand_as(vectors))
        norms = torch.linalg.vector_norm(vectors, dim=-1) * torch.linalg.vector_norm(fused, dim=-1)
        cosines.append(dot / norms.clamp_min(torch.finfo(norms.dtype).tiny))
    return torch.stack(cosines).mean(0)


def ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The dominant half of the modalities, rounded up, and the others.

    Of equal scores the modality that comes first in the run ranks first.

    Args:
        scores: ``[M, B]``, the higher the more dominant.

    Returns:
        ``(dominant, weak)``: bool ``[M, B]`` with ceil(M / 2) ones per sample, and int64
        ``[floor(M / 2), B]``, the rows of the others.
    """
    weak = scores.argsort(dim=0, descending=True, stable=True)[(len(scores) + 1) // 2 :]
    dominant = torch.ones_like(scores, dtype=torch.bool)
    return dominant.scatter_(0, weak, torch.zeros_like(weak, dtype=torch.bool)), weak


@dataclass
class Dominance:
    """Ranking of the modalities of a step, made from features by `rank`.

    Attributes:
        per_batch: rank all samples alike, by the mean of their scores.
        mean_over_processes: function that averages a tensor over all processes.
        dominant: bool ``[M, B]``, set by `rank`.
        weak: int64 ``[floor(M / 2), B]``, rows of the modalities that are not dominant; likewise.
    """

    per_batch: bool = False
    mean_over_processes: Callable[[Tensor], Tensor] = lambda x: x
    dominant: Tensor = field(init=False)
    weak: Tensor = field(init=False)

    def rank(self, features: Sequence[Tensor]) -> Tensor:
        """Rank by ``features [M, B, C, h, w]`` per level; gives ``weak``."""
        scores = agreement_with_fusion(features)
        if self.per_batch:
            mean = self.mean_over_processes(scores.mean(1, keepdim=True))
            scores = mean.expand_as(scores)
        self.dominant, self.weak = ranked(scores)
        return self.weak
