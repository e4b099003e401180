"""The published training losses as loops: what ``official`` stands for in the benchmarks.

Written by us from the description of github.com/RobustSeg/RobustSeg at ea9add7, not copied: the
loops over samples, levels, modalities and classes, a mask per class, the branches and boolean
indices that wait for the device, the gradient of a gradient. Everything runs in float32, or in
float64 for float64 inputs, as the published configurations leave mixed precision off. Weights of
the training scripts are not included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = 255


def _upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _upsampled(logits: Tensor, labels: Tensor) -> Tensor:
    size = labels.shape[-2:]
    return functional.interpolate(_upcast(logits), size=size, mode="bilinear", align_corners=False)


def mean_divergence(log_p: Tensor, q: Tensor) -> Tensor:
    """Mean of ``q (log q - log p)`` over all elements, without the warning of this reduction."""
    return functional.kl_div(log_p, q, reduction="none").mean()


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    threshold: float = 0.7,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the hard pixels, at least a sixteenth, and divergence from a teacher.

    Args:
        logits: ``[B, K, h, w]``.
        labels: ``[B, H, W]`` integers, 255 is ignored.
        teacher_logits: like ``logits``; constant.
        threshold: probability of the true class below which a pixel is hard.

    Returns:
        Two scalars; the second is zero without a teacher.
    """
    target = labels.long()
    full = _upsampled(logits, labels)
    fewest = target[target != IGNORE].numel() // 16
    losses = functional.cross_entropy(full, target, ignore_index=IGNORE, reduction="none")
    losses = losses.flatten()
    hard = losses[losses > -math.log(threshold)]
    if hard.numel() < fewest:
        hard = losses.topk(fewest).values
    if teacher_logits is None:
        return hard.mean(), full.new_zeros(())
    wanted = _upsampled(teacher_logits, labels).softmax(1)
    return hard.mean(), mean_divergence(full.log_softmax(1), wanted)


def resized_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Label map ``[H, W]`` of one sample at the size ``(h, w)`` of a level, through float32."""
    resized = functional.interpolate(labels[None, None].float(), size=tuple(size), mode="nearest")
    return resized[0, 0].long()


def class_prototypes(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Prototypes ``[K, C]`` of one feature map, divided by the class count twice, as released.

    Args:
        features: ``[C, h, w]``.
        labels: ``[h, w]``.
        num_classes: K.
    """
    prototypes = features.new_zeros((num_classes, features.shape[0]))
    for k in range(num_classes):
        mask = labels == k
        count = mask.sum()
        if count > 0:
            prototypes[k] = features[:, mask].mean(1) / count
    return prototypes


def prototype_pools(
    features: Sequence[Tensor], labels: Tensor, num_classes: int
) -> list[list[Tensor]]:
    """Prototypes ``[K, C]`` of every level, and in it of every modality and sample.

    Args:
        features: per level ``[M, B, C, h, w]``.
        labels: ``[B, H, W]``.
        num_classes: K.
    """
    found: list[list[Tensor]] = [[] for _ in features]
    for prototypes, level in zip(found, features, strict=True):
        for maps in level:
            for b, x in enumerate(maps):
                resized = resized_labels(labels[b], x.shape[1:])
                prototypes.append(class_prototypes(_upcast(x), resized, num_classes))
    return found


def softmax_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over K C of the divergence over the classes, at least zero, of two ``[K, C]``."""
    return mean_divergence(student.log_softmax(0), teacher.softmax(0)).clamp(min=0)


def prototype_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    present: Sequence[int] | None = None,
) -> Tensor:
    """Prototype distillation, each student modality from the same modality of the teacher.

    Args:
        student: per level ``[Ms, B, C, h, w]``.
        teacher: per level ``[Mt, B, C, h, w]``.
        labels: ``[B, H, W]`` integers.
        num_classes: K.
        present: teacher modality of each student row; row for row by default.
    """
    batch, rows = labels.shape[0], range(student[0].shape[0]) if present is None else present
    total = _upcast(student[0]).new_zeros(())
    for b in range(batch):
        for x, t in zip(student, teacher, strict=True):
            for m, row in enumerate(rows):
                sides = []
                for features in (x[m, b], t[row, b].detach()):
                    resized = resized_labels(labels[b], features.shape[1:])
                    sides.append(class_prototypes(_upcast(features), resized, num_classes))
                total = total + softmax_divergence(*sides)
    return total / batch


def representation_regularisation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    samples: int = 10,
    noise: Sequence[Tensor] | None = None,
    normalise: bool = False,
) -> Tensor:
    """The regulariser that the released code calls functional entropy, of all levels.

    Args:
        student: per level ``[M, B, C, h, w]``.
        teacher: features of the same modalities.
        samples: S, noisy copies of each channel.
        noise: per level ``[S, 2, M, B, C, h, w]`` to use, the student's and the teacher's.
        normalise: divide each level by N^2 h, N = C S h w, which the published code does not: the
            value is then that of ``fastseg.kernels.reference.profile_regulariser``.
    """
    total = _upcast(student[0]).new_zeros(())
    batch = student[0].shape[1]
    for b in range(batch):
        for level, (x, t) in enumerate(zip(student, teacher, strict=True)):
            for m in range(len(x)):
                draws: list[Tensor | None] = [None, None]
                if noise is not None:
                    # a channel's copies are next to each other
                    sides = noise[level][:, :, m, b].unbind(1)
                    draws = [side.transpose(0, 1).flatten(0, 1) for side in sides]
                noisy = perturbed(x[m, b], samples, draws[0])
                with torch.no_grad():
                    target = perturbed(t[m, b], samples, draws[1]).softmax(1)
                score = inverse_scores(noisy.log_softmax(1), target.requires_grad_())
                total = total + (
                    score / (noisy.numel() ** 2 * noisy.shape[1]) if normalise else score
                )
    return total / batch


def perturbed(features: Tensor, samples: int, noise: Tensor | None) -> Tensor:
    """Copies of each channel plus noise of the spread of all of them at a position.

    Args:
        features: ``[C, h, w]``.
        samples: S.
        noise: ``[C S, h, w]`` standard normal numbers to use.

    Returns:
        ``[C S, h, w]``.
    """
    copies = _upcast(features).repeat_interleave(samples, 0)
    draw = torch.randn_like(copies) if noise is None else noise
    return copies + draw * copies.std(0)


def inverse_scores(log_p: Tensor, q: Tensor) -> Tensor:
    """Norm of the inverse scores of two gradients of ``KL(q || p)``, to be differentiated again.

    Args:
        log_p: ``[C S, h, w]``, logarithms of a softmax over h.
        q: softmax over h; requires a gradient.
    """
    divergence = mean_divergence(log_p, q).clamp(min=0)
    slopes = torch.autograd.grad(divergence, (log_p, q), create_graph=True)
    scores = [slope.square().sum(1).mean() / divergence for slope in slopes]
    norm: Tensor = torch.stack([1 / score for score in scores]).norm()
    return norm
