"""Class prototypes: the mean feature of every class of a sample, at one encoder level."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .precision import upcast, without_autocast

Divide = Literal["once", "twice"]


def level_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label map at the resolution of an encoder level, by nearest neighbour.

        out[b, r, c] = labels[b, floor(r H / h), floor(c W / w)]

    This is ``interpolate(mode="nearest")``; for an integer stride it is the top left label of each
    cell, and the result is a view.

    Args:
        labels: ``[B, H, W]``, any dtype.
        size: ``(h, w)`` of the level.

    Returns:
        ``[B, h, w]`` in the dtype of ``labels``.

    Raises:
        ValueError: ``labels`` is not three-dimensional or a size is not positive.
    """
    if labels.ndim != 3 or min(*labels.shape[1:], *size) < 1:
        raise ValueError(
            f"expected labels [B, H, W] and a size of at least 1 x 1, "
            f"got {tuple(labels.shape)} and {tuple(size)}"
        )
    (height, width), (h, w) = labels.shape[1:], size
    if height % h == 0 and width % w == 0:
        return labels[:, :: height // h, :: width // w]
    rows = torch.arange(h, device=labels.device) * height // h
    columns = torch.arange(w, device=labels.device) * width // w
    return labels[:, rows[:, None], columns]


def class_assignment(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """One-hot assignment of pixels to classes, and the number of pixels of each class.

    Args:
        labels: ``[B, h, w]`` integers; values outside ``[0, num_classes)`` belong to no class.
        num_classes: K, at least 1.

    Returns:
        ``assignment [B, h*w, K]`` bool, and ``counts [B, K]`` int64, in pixels.

    Raises:
        ValueError: ``num_classes`` is not positive or the labels are not integers.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    classes = torch.arange(num_classes, device=labels.device)
    # int64 first: a uint8 map compared with class 256 would wrap around
    assignment = labels.flatten(1).long().unsqueeze(-1) == classes
    return assignment, assignment.sum(1)


def pool(features: Tensor, assignment: Tensor, counts: Tensor, divide: Divide) -> Tensor:
    """Class means of ``features [M, B, C, h, w]`` for a given assignment: ``[M, B, K, C]``."""
    pixels = upcast(features).flatten(3)
    sums = torch.matmul(pixels, assignment.to(pixels.dtype)).transpose(2, 3)
    number = counts.clamp(min=1).to(pixels.dtype).unsqueeze(-1)
    return sums / (number if divide == "once" else number.square())


@without_autocast
def masked_prototype_pool(
    features: Tensor, labels: Tensor, num_classes: int, divide: Divide = "once"
) -> tuple[Tensor, Tensor]:
    """Prototype of every class: its mean feature in each sample and modality.

        counts[b, k] = #{p : y[b, p] = k}
        prototypes[m, b, k] = sum_{p : y[b, p] = k} features[m, b, :, p] / max(counts[b, k], 1)

    with y the label map at the features' resolution (:func:`level_labels`). The gradient of a pixel
    is its class's gradient over the class's count; pixels of no class get zero.

    Args:
        features: ``[M, B, C, h, w]``, any float dtype, any strides.
        labels: ``[B, H, W]`` integers at full resolution; values outside ``[0, num_classes)``,
            such as 255, are ignored.
        num_classes: K, at least 1.
        divide: ``"once"`` is the class mean of the papers. ``"twice"`` divides by the count again,
            as the released code does; for comparison with it only.

    Returns:
        ``prototypes [M, B, K, C]`` float32 (float64 for float64 features), zero for a class without
        pixels, and ``counts [B, K]`` int64, in pixels of the level.

    Raises:
        ValueError: the shapes do not agree, ``divide`` is unknown or ``num_classes`` not positive.

    Source: RobustSeg, arXiv:2505.12861v1 (hybrid prototype distillation); the second division is
    in ``mmkd/Prototype.py`` of github.com/RobustSeg/RobustSeg at ea9add7.
    """
    if features.ndim != 5 or labels.ndim != 3 or labels.shape[0] != features.shape[1]:
        raise ValueError(
            f"expected features [M, B, C, h, w] and labels [B, H, W] of the same B, "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if divide not in ("once", "twice"):
        raise ValueError(f'divide must be "once" or "twice", got {divide!r}')
    size = (features.shape[3], features.shape[4])
    assignment, counts = class_assignment(level_labels(labels, size), num_classes)
    return pool(features, assignment, counts, divide), counts
