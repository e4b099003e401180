"""The supervised loss: cross-entropy of the hard pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .precision import upcast, without_autocast

_IGNORED = -100  # not a class and not a value of any label map


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each pixel whose gradient keeps its digits where a pixel is nearly certain.

    PyTorch's own subtracts one from the probability of the true class, which leaves few digits of a
    small difference. Here it is minus the sum of the other classes' probabilities. The value is
    PyTorch's.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        ctx.save_for_backward(log_p, target)
        return functional.nll_loss(log_p, target, ignore_index=_IGNORED, reduction="none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        log_p, target = ctx.saved_tensors
        known = target != _IGNORED
        place = target.where(known, 0).unsqueeze(1)
        others = log_p.exp() * upstream.where(known, 0.0).unsqueeze(1)
        others = others.scatter(1, place, 0.0)
        return others.scatter(1, place, -others.sum(1, keepdim=True)), None


@without_autocast
def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy averaged over the hard pixels of the batch (online hard example mining).

        loss_p = -w[y_p] log softmax(logits)[y_p],    hard = {p : loss_p > -log(threshold)}
        n_min = floor(min_kept * number of valid pixels)
        L = mean of the max(|hard|, n_min) largest losses

    This is the published rule in one sentence: the hard pixels are the |hard| largest losses, and
    when they are fewer than n_min the n_min largest are taken instead. The gradient is
    ``w[y] (softmax - onehot) / number kept`` on the kept pixels and zero elsewhere.

    Args:
        logits: ``[B, K, H, W]``, any float dtype.
        labels: ``[B, H, W]`` integers; ``ignore_index`` and everything outside ``[0, K)`` is
            ignored.
        threshold: predicted probability of the true class below which a pixel is hard, in (0, 1].
        min_kept: smallest share of the valid pixels that is kept, in [0, 1].
        ignore_index: label of pixels without a class.
        class_weights: w ``[K]``, floats, positive, constant; without them all are 1. As in the
            released code they take part in the choice of the hard pixels, and the mean is over the
            number of these, not over their weights.

    Returns:
        A scalar; zero with zero gradient when no pixel is kept, that is when all are ignored, or
        all are easy and too few for ``min_kept`` to ask for one.

    Raises:
        ValueError: the shapes do not agree, or a share is out of range.

    Source: ``OhemCrossEntropy`` of github.com/RobustSeg/RobustSeg at ea9add7, which returns NaN
    where this returns zero. On other devices than the CPU nothing here waits for the device.
    """
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"expected logits [B, K, H, W] and labels [B, H, W], "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not 0 < threshold <= 1 or not 0 <= min_kept <= 1:
        raise ValueError(
            f"threshold must be in (0, 1] and min_kept in [0, 1], got {threshold} and {min_kept}"
        )
    target = labels.long()
    valid = valid_labels(target, logits.shape[1], ignore_index)
    losses: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        upcast(logits), target.where(valid, _IGNORED)
    )
    return mean_of_hard(weighted(losses, target, valid, class_weights), valid, threshold, min_kept)


def weighted(losses: Tensor, target: Tensor, valid: Tensor, class_weights: Tensor | None) -> Tensor:
    """Each pixel's loss times the weight of its class; as it is without weights.

    Args:
        losses: ``[B, H, W]``.
        target: ``[B, H, W]`` int64.
        valid: bool, whether ``target`` is a class.
        class_weights: ``[K]``.
    """
    if class_weights is None:
        return losses
    return losses * class_weights.to(losses.dtype)[target.where(valid, 0)]


def valid_labels(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Bool: whether a label is a class that is not ignored."""
    return (labels != ignore_index) & (labels >= 0) & (labels < num_classes)


def mean_of_hard(losses: Tensor, valid: Tensor, threshold: float, min_kept: float) -> Tensor:
    """Mean of the hard pixels' losses, see `ohem_cross_entropy`; zero where none is kept.

    Args:
        losses: of each pixel, zero where it is not valid.
        valid: bool, of the same shape.
        threshold: probability of the true class below which a pixel is hard.
        min_kept: smallest share of the valid pixels that is kept.
    """
    losses = losses.flatten()
    hard = ~(losses.detach() <= -math.log(threshold))  # NaN is hard, so that it shows
    least = (valid.sum().double() * min_kept).long()
    # on the CPU reading the counts costs nothing, sorting does; a compiled graph cannot branch, and
    # a fake tensor has no value to read
    real = type(losses) is Tensor and not torch.compiler.is_compiling()
    if losses.device.type == "cpu" and real:
        return _mean_of_largest_by_count(losses, hard, least)
    return _mean_of_largest_by_rank(losses, hard, least)


def _mean_of_largest_by_count(losses: Tensor, hard: Tensor, least: Tensor) -> Tensor:
    """Mean of the hard losses, or of the ``least`` largest; reads both counts."""
    if int(least) <= int(hard.sum()):
        return losses.where(hard, 0.0).sum() / hard.sum().clamp(min=1)
    return losses.topk(int(least), sorted=False).values.mean()


def _mean_of_largest_by_rank(losses: Tensor, hard: Tensor, least: Tensor) -> Tensor:
    """The same without a value on the host, at the price of a sort."""
    kept = torch.maximum(hard.sum(), least)
    ranked = losses.sort(descending=True).values
    rank = torch.arange(ranked.numel(), device=ranked.device)
    return ranked.where(rank < kept, 0.0).sum() / kept.clamp(min=1)
