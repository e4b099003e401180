"""Fusions of the modalities' features, by the names of ``--model.fusion``.

A fusion takes the levels ``[M, B, C, h, w]``, with the channels the fastest in memory, which the
results keep, and marks ``fused [P, M, B]`` (1 or 0, at least one 1 for each fusion and sample) or
None. It gives the fused levels ``[B, C, h, w]``, or ``[P B, C, h, w]`` by marks, and the features
once for each further user, see `fastseg.kernels.mean_fusion`. None of them has parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastseg import kernels

Fusion = Callable[[Sequence[Tensor], Tensor | None, int], tuple[list[Tensor], list[list[Tensor]]]]

_SMALLEST = 1e-16
"""Squared norms below this count as this: the cosine with a vector of zeros is 0."""


def mff(x: Tensor, fused: Tensor | None = None) -> Tensor:
    """Features of a level reweighted by their agreement with the mean; then maximum and mean.

        mean = 1/M sum_m F_m,   rho_m(pixel) = cos(F_m(pixel), mean(pixel))
        G_m  = (1 + rho_m) F_m
        out  = max_m G_m + 1/M sum_m G_m      maximum of each channel and pixel

    Sums run in fp32 for shorter dtypes. One modality alone, or several equal ones, give ``4 F``.

    A reconstruction of the multi-modal fusion (MFF) of Any2Seg, arXiv:2407.11351, from its
    description: its equations are not public in full.
    """
    pixels = x.movedim(2, -1)
    pixels = pixels if pixels.dtype == torch.float64 else pixels.float()
    if fused is None:
        out = _reweighted(pixels, None)
    else:
        out = torch.cat([_reweighted(pixels, marks.bool()) for marks in fused])
    return out.to(x.dtype).movedim(-1, 1)


def _reweighted(pixels: Tensor, marks: Tensor | None) -> Tensor:
    """``[B, h, w, C]`` from ``[M, B, h, w, C]``; marks ``[M, B]``, or all."""
    if marks is None:
        centre = pixels.mean(0)
    else:
        marks = marks.view(*marks.shape, 1, 1, 1)
        weights = marks.to(pixels.dtype) / marks.sum(0)
        centre = (weights * pixels).sum(0)
    norms = _squared(pixels) * _squared(centre)
    rho = (pixels * centre).sum(-1, keepdim=True) * norms.rsqrt()
    scaled = (1 + rho) * pixels
    if marks is None:
        return scaled.amax(0) + scaled.mean(0)
    highest = scaled.masked_fill(~marks, -torch.inf).amax(0)
    return highest + (weights * scaled).sum(0)


def _squared(vectors: Tensor) -> Tensor:
    """``[.., 1]``: squared norms along the last axis, not quite zero."""
    return vectors.square().sum(-1, keepdim=True).clamp(min=_SMALLEST)


def _mff_of_levels(
    features: Sequence[Tensor], fused: Tensor | None, branches: int
) -> tuple[list[Tensor], list[list[Tensor]]]:
    return [mff(x, fused) for x in features], [list(features) for _ in range(branches)]


FUSIONS: dict[str, Fusion] = {"mean": kernels.mean_fusion, "mff": _mff_of_levels}
