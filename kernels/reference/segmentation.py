"""The segmentation losses and predictions of logits at a fraction of the labels' resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import upsampled
from .divergence import logit_distillation
from .precision import upcast, without_autocast
from .supervised import mean_of_hard, ohem_cross_entropy, valid_labels, weighted


@without_autocast
def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
    ignore_index: int = 255,
    temperature: float = 1.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the hard pixels and divergence from a teacher, at the labels' resolution.

        z = bilinear(logits, H x W),   t = bilinear(teacher_logits, H x W)
        ohem = ohem_cross_entropy(z, labels),   kl = logit_distillation(z, t)

    The interpolation has ``align_corners=False`` and runs in float32 whatever the dtype.

    Args:
        logits: ``[B, K, h, w]``, any float dtype.
        labels: ``[B, H, W]`` integers; ``ignore_index`` and everything outside ``[0, K)`` is
            ignored by the cross-entropy. The divergence runs over all pixels.
        teacher_logits: the shape of ``logits``, any float dtype; constant.
        threshold: of ``ohem_cross_entropy``.
        min_kept: of ``ohem_cross_entropy``.
        ignore_index: of ``ohem_cross_entropy``.
        temperature: of ``logit_distillation``.
        class_weights: ``[K]`` floats, of ``ohem_cross_entropy``.

    Returns:
        ``(ohem, kl)``, two scalars; ``kl`` is zero without a teacher, both are for an empty batch.

    Raises:
        ValueError: a shape, dtype, device or option is wrong.
    """
    check_loss(logits, labels, teacher_logits, threshold, min_kept, temperature, class_weights)
    if logits.shape[0] == 0:
        return upcast(logits).sum(), upcast(logits).sum()
    size = labels.shape[-2:]
    if _in_cache(logits):
        small, target = upcast(logits), labels.long()
        valid = valid_labels(target, logits.shape[1], ignore_index)
        losses = upsampled.cross_entropy(small, target.where(valid, 0), valid)
        losses = weighted(losses, target, valid, class_weights)
        ohem = mean_of_hard(losses, valid, threshold, min_kept)
        if teacher_logits is None:
            return ohem, ohem.new_zeros(())
        taught = upcast(teacher_logits.detach()).to(small.dtype)
        return ohem, upsampled.distillation(small, taught, size, temperature)
    full = _upsampled(logits, size)
    ohem = ohem_cross_entropy(full, labels, threshold, min_kept, ignore_index, class_weights)
    if teacher_logits is None:
        return ohem, ohem.new_zeros(())
    with torch.no_grad():
        target = _upsampled(teacher_logits, size)
    return ohem, logit_distillation(full, target, temperature)


@without_autocast
def upsample_argmax(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Most likely class at each pixel of the bilinearly upsampled logits.

    Args:
        logits: ``[B, K, h, w]``, any float dtype, K at most 256.
        size: ``(H, W)`` of the result.

    Returns:
        ``[B, H, W]`` uint8; the first of equally likely classes.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    check_logits(logits)
    check_size(logits, size)
    if logits.shape[0] == 0:
        return logits.new_empty((0, *size), dtype=torch.uint8)
    if _in_cache(logits):
        return _classes_in_cache(upcast(logits.detach()), size)
    full = _upsampled(logits.detach(), size)
    # on a CPU argmax over planes takes four times as long, with the same answer
    return full.max(1).indices.to(torch.uint8)


def upsample_confusion(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix of the upsampled prediction.

        counts[i, j] = #{pixels with labels = i and upsample_argmax = j}

    Args:
        logits: ``[B, K, h, w]``, any float dtype, K at most 256.
        labels: ``[B, H, W]`` integers; pixels outside ``[0, K)``, such as 255, are not counted.
        num_classes: K.

    Returns:
        ``[K, K]`` int64, additive over batches and ranks.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    check_labels(logits, labels)
    if logits.shape[1] != num_classes:
        raise ValueError(f"expected logits of {num_classes} classes, got {tuple(logits.shape)}")
    predictions, k = upsample_argmax(logits, labels.shape[-2:]), num_classes
    if logits.device.type == "cpu":
        return count_pairs(predictions, labels, k)
    predictions, target = predictions.long(), labels.long()
    # what is ignored falls into one extra cell; bincount would wait for the device
    cell = (target * k + predictions).where((target >= 0) & (target < k), k * k).flatten()
    counts = torch.zeros(k * k + 1, dtype=torch.int64, device=logits.device)
    return counts.scatter_add_(0, cell, torch.ones_like(cell))[:-1].view(k, k)


def _classes_in_cache(logits: Tensor, size: Sequence[int]) -> Tensor:
    """`upsample_argmax` on a CPU."""
    height, width = size
    factor = height // logits.shape[2]
    if factor % 2 == 0 and [height, width] == [factor * side for side in logits.shape[2:]]:
        return upsampled.upsampled_classes(logits, factor)
    full = _upsampled(logits, size).flatten(2)
    return torch.stack([upsampled.first_largest(x) for x in full]).view(-1, height, width)


def count_pairs(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix ``[K, K]`` int64 of tensors of one shape on a CPU.

    Args:
        predictions: integers in ``[0, K)``.
        labels: integers; those outside ``[0, K)`` are not counted.
        num_classes: K.
    """
    k = num_classes
    # short numbers are read and counted in half the time
    dtype = torch.int16 if k * k < 2**15 else torch.int32
    # what is ignored falls into one extra cell
    rows = (labels.to(dtype) * k).where((labels >= 0) & (labels < k), k * k)
    cells = (rows + predictions.to(dtype)).clamp_(max=k * k).flatten()
    return torch.bincount(cells, minlength=k * k + 1)[:-1].view(k, k)


def check_logits(logits: Tensor) -> None:
    """Raise ValueError unless these are floating-point logits ``[B, K, h, w]`` with a pixel."""
    if logits.ndim != 4 or 0 in logits.shape[1:] or not logits.is_floating_point():
        raise ValueError(
            f"expected floating-point logits [B, K, h, w], got {tuple(logits.shape)} {logits.dtype}"
        )


def check_size(logits: Tensor, size: Sequence[int]) -> None:
    """Raise ValueError unless these logits have an argmax of this size in uint8."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"expected a size (H, W), got {tuple(size)}")
    if logits.shape[1] > 256:
        raise ValueError(f"the classes of {tuple(logits.shape)} do not fit into uint8")


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless these are integer labels of the logits' samples."""
    check_logits(logits)
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0] or 0 in labels.shape[1:]:
        raise ValueError(
            f"expected logits [B, K, h, w] and labels [B, H, W], "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"expected integer labels, got {labels.dtype}")
    if labels.device != logits.device:
        raise ValueError(f"logits are on {logits.device}, labels on {labels.device}")


def check_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    threshold: float,
    min_kept: float,
    temperature: float,
    class_weights: Tensor | None = None,
) -> None:
    """Raise ValueError unless these are arguments of :func:`segmentation_loss`."""
    check_labels(logits, labels)
    if teacher_logits is not None:
        check_logits(teacher_logits)
        if teacher_logits.shape != logits.shape or teacher_logits.device != logits.device:
            raise ValueError(
                f"expected two logits [B, K, h, w] alike, got {tuple(logits.shape)} on "
                f"{logits.device} and {tuple(teacher_logits.shape)} on {teacher_logits.device}"
            )
    if not 0 < threshold <= 1 or not 0 <= min_kept <= 1:
        raise ValueError(
            f"threshold must be in (0, 1] and min_kept in [0, 1], got {threshold} and {min_kept}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if class_weights is not None and (
        class_weights.shape != logits.shape[1:2]
        or class_weights.dtype != torch.float32
        or class_weights.device != logits.device
    ):
        raise ValueError(
            f"expected float32 weights of {logits.shape[1]} classes on {logits.device}, got "
            f"{tuple(class_weights.shape)} {class_weights.dtype} on {class_weights.device}"
        )


def _in_cache(logits: Tensor) -> bool:
    """Whether to take one sample after the other: on a CPU; float64 is the definition itself."""
    plain = logits.dtype == torch.float64 or torch.compiler.is_compiling()
    return logits.device.type == "cpu" and not plain


def _upsampled(logits: Tensor, size: Sequence[int]) -> Tensor:
    # over channels that are last in memory the softmaxes that follow take seven times as long
    return functional.interpolate(
        upcast(logits).contiguous(), size=tuple(size), mode="bilinear", align_corners=False
    )
