"""Terms that compare a network with the labels: cross-entropy of the hard pixels, and soft Dice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_SMOOTH = 1.0
"""Added to numerator and denominator: a class of one pixel is not all or nothing."""
_KEPT: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def class_weights_on(weights: tuple[float, ...], device: torch.device) -> Tensor | None:
    """Weights of the classes as a float32 tensor, copied to a device once; None without any.

    A copy in every step would make the host wait, and could not be part of a CUDA graph.
    """
    if not weights:
        return None
    if (weights, device) not in _KEPT:
        tensor = torch.tensor(weights, device=device)
        if type(tensor) is not Tensor:  # of a forecast, which has no values
            return tensor
        _KEPT[weights, device] = tensor
    return _KEPT[weights, device]


class _Dice(torch.autograd.Function):
    """One sample after the other: the probabilities of a sample live for a moment, and once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        sides = zip(logits.shape[2:], labels.shape[1:], strict=True)
        enlarge = [_bilinear(*side, logits) for side in sides]
        sums = []
        for x, y in zip(logits, labels, strict=True):
            own, valid = _own(y, classes)
            p = _upsampled(x, *enlarge).softmax(0)
            both = torch.stack([(p * own).sum((1, 2)), (p * valid).sum((1, 2))])
            sums.append(torch.cat([both, own.sum((1, 2), dtype=p.dtype)[None]]))
        common, predicted, labelled = torch.stack(sums).sum(0)
        there = labelled > 0
        upper, lower = 2 * common + _SMOOTH, predicted + labelled + _SMOOTH
        count = there.sum().clamp(min=1)
        ctx.save_for_backward(logits, labels, classes, *enlarge)
        # derivatives of the loss by a probability: of the true class in addition, and of any
        scale = there / (count * lower)
        ctx.slopes = -2 * scale, scale * upper / lower
        loss: Tensor = ((1 - upper / lower) * there).sum() / count
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, labels, classes, *enlarge = ctx.saved_tensors
        of_own, of_any = (x.view(-1, 1, 1) * upstream for x in ctx.slopes)
        rows, columns = enlarge
        gradient = torch.empty_like(logits)
        with torch.autocast(logits.device.type, enabled=False):
            for x, y, out in zip(logits, labels, gradient, strict=True):
                own, valid = _own(y, classes)
                p = _upsampled(x, *enlarge).softmax(0)
                slope = own * of_own + valid * of_any
                slope = p * (slope - (p * slope).sum(0))
                out.copy_(rows.T @ (slope @ columns))
        return gradient, None


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice loss, mean over the classes that the labels have.

        p = softmax(bilinear(logits, H x W)),   over all labelled pixels of the batch:
        I_k = sum_p p_k [y = k],   P_k = sum_p p_k,   Y_k = sum_p [y = k]
        dice = mean over k with Y_k > 0 of  1 - (2 I_k + 1) / (P_k + Y_k + 1)

    With several processes each has the loss of its own samples. Sums run in fp32 and in a fixed
    order, and the host waits for nothing; a sample's ``[K, H, W]`` probabilities and their gradient
    are the memory that is needed, for a moment in each pass.

    Args:
        logits: ``[B, K, h, w]``, any float dtype.
        labels: ``[B, H, W]`` integers; what is not in ``[0, K)``, such as 255, is ignored.

    Returns:
        An fp32 scalar in [0, 1]; zero with zero gradient where nothing is labelled.

    Source: V-Net, arXiv:1606.04797, with plain sums in the denominator; ignored pixels, the classes
    of the mean and the smoothing are choices made here.
    """
    if logits.shape[0] == 0:
        return logits.float().sum()
    with torch.autocast(logits.device.type, enabled=False):
        exact = torch.promote_types(logits.dtype, torch.float32)
        loss: Tensor = _Dice.apply(logits.to(exact), labels)  # type: ignore[no-untyped-call]
    return loss


def _own(labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Bool ``[K, H, W]``, whether a class is that of a pixel, and ``[H, W]``, whether any is."""
    own = labels.long()[None] == classes
    return own, own.any(0)


def _bilinear(inside: int, outside: int, like: Tensor) -> Tensor:
    """Weights ``[outside, inside]`` of the interpolation along one axis."""
    units = torch.eye(inside, dtype=like.dtype, device=like.device)
    return functional.interpolate(units[None], outside, mode="linear")[0].T.contiguous()


def _upsampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``[K, h, w]`` to ``[K, H, W]``, by products: torch's gradient adds in any order on a GPU."""
    return rows @ (x @ columns.T)
