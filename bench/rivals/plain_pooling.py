"""Loop-free pooling in plain PyTorch: what a careful user would write instead of the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastseg.kernels import reference
from fastseg.kernels.reference.pooling import Divide, class_assignment

Pools = Callable[[Sequence[Tensor], Tensor, int], list[tuple[Tensor, Tensor]]]


def definition_pools(
    features: Sequence[Tensor], labels: Tensor, num_classes: int, divide: Divide = "once"
) -> list[tuple[Tensor, Tensor]]:
    """The definition, level by level."""
    return [reference.masked_prototype_pool(x, labels, num_classes, divide) for x in features]


def onehot_bmm_pools(
    features: Sequence[Tensor], labels: Tensor, num_classes: int
) -> list[tuple[Tensor, Tensor]]:
    """Features times a one-hot matrix in the features' dtype, which rounds the sums to it.

    Args:
        features: per level ``[M, B, C, h, w]``.
        labels: ``[B, H, W]``.
        num_classes: K.

    Returns:
        Per level prototypes ``[M, B, K, C]`` and counts ``[B, K]``.
    """
    found = []
    for x in features:
        resized = reference.level_labels(labels, (x.shape[3], x.shape[4]))
        assignment, counts = class_assignment(resized, num_classes)
        sums = torch.matmul(x.flatten(3), assignment.to(x.dtype)).transpose(2, 3)
        found.append((sums / counts.clamp(min=1).unsqueeze(-1), counts))
    return found


def index_add_pools(
    features: Sequence[Tensor], labels: Tensor, num_classes: int
) -> list[tuple[Tensor, Tensor]]:
    """Features added to the row of their class, in float32; arguments as above."""
    found = []
    for x in features:
        m, b, c, h, w = x.shape
        classes = reference.level_labels(labels, (h, w)).flatten(1).long()
        # a row for the ignored pixels of each sample
        classes = classes.where((classes >= 0) & (classes < num_classes), num_classes)
        row = (classes + torch.arange(b, device=x.device)[:, None] * (num_classes + 1)).flatten()
        total = x.new_zeros((m, b * (num_classes + 1), c), dtype=torch.float32)
        total = total.index_add(1, row, x.movedim(2, 4).reshape(m, -1, c).float())
        number = row.new_zeros(b * (num_classes + 1)).index_add(0, row, torch.ones_like(row))
        counts = number.view(b, -1)[:, :num_classes]
        sums = total.view(m, b, -1, c)[:, :, :num_classes]
        found.append((sums / counts.clamp(min=1).unsqueeze(-1), counts))
    return found
