"""Distillation of the similarities that a frozen vision-language model sees.

All sums run in fp32. Embeddings are unit vectors of d entries: ``e[m, b]`` of the network that
learns, ``v[m, b]`` of the model for the same picture, ``t[b]`` of the model for a sentence about
the scene. The equations are a reconstruction: those of Any2Seg (arXiv:2407.11351), whose idea they
follow, are not public in full.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NOWHERE = -1e4
"""A logit of something that is not there: its probability is exactly 0, and differences finite."""


def inter_modal(
    student: Tensor, visual: Tensor, temperature: float = 0.07, marks: Tensor | None = None
) -> Tensor:
    """Which modalities of a sample resemble each other.

        P_b[m, :] = softmax_n(<e[m, b], e[n, b]> / temperature),   Q_b alike of v
        inter = 1/B sum_b sum_m KL(Q_b[m, :] || P_b[m, :])

    over the modalities m, n that are there. One modality alone gives zero, with zero gradient.

    Args:
        student: e, ``[M, B, d]`` of unit norm.
        visual: v, the same shape; constant.
        temperature: positive.
        marks: ``[M, B]``, 1 for what is there; none: all.

    Returns:
        An fp32 scalar, at least zero.
    """
    there = _there(student, marks)
    own, other = (
        torch.einsum("mbd,nbd->bmn", x.float(), x.float()) / temperature for x in (student, visual)
    )
    absent = ~there.T.unsqueeze(1)
    rows = _divergence(*(x.masked_fill(absent, _NOWHERE) for x in (own, other)))
    return torch.where(there.T, rows, 0.0).sum(1).mean()


def intra_modal(
    student: Tensor,
    visual: Tensor,
    text: Tensor,
    temperature: float = 0.07,
    marks: Tensor | None = None,
) -> Tensor:
    """Which sentences of the batch a picture resembles.

        P_m[b, :] = softmax_b'(<e[m, b], t[b']> / temperature),   Q_m alike of v
        intra = 1/B sum_b 1/|A_b| sum_{m in A_b} KL(Q_m[b, :] || P_m[b, :])

    over the modalities ``A_b`` that are there. The sentences are those of one share of a step: a
    sample alone in its share gives zero, with zero gradient.

    Args:
        student: e, ``[M, B, d]`` of unit norm.
        visual: v, the same shape; constant.
        text: t, ``[B, d]`` of unit norm; constant.
        temperature: positive.
        marks: ``[M, B]``, 1 for what is there; none: all.

    Returns:
        An fp32 scalar, at least zero.
    """
    there = _there(student, marks)
    own, other = (x.float() @ text.float().T / temperature for x in (student, visual))
    rows = torch.where(there, _divergence(own, other), 0.0)
    return (rows.sum(0) / there.sum(0)).mean()


def _there(student: Tensor, marks: Tensor | None) -> Tensor:
    """``[M, B]`` bool."""
    if marks is None:
        return torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    return marks > 0


def _divergence(own: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(other) || softmax(own)) along the last axis, as a sum of terms of at least 0."""
    log_q = other.log_softmax(-1)
    r = log_q - own.log_softmax(-1)
    return (log_q.exp() * (torch.expm1(-r) + r)).sum(-1)
