"""The operators as ``nn.Module`` with fixed options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .entropy.regularisation import functional_entropy, representation_regularisation
from .operators import (
    hybrid_prototype_distillation,
    ifv_distillation,
    masked_prototype_pool,
    prototype_divergence,
    prototype_similarity,
    segmentation_loss,
    similarity_divergence,
    upsample_argmax,
    upsample_confusion,
)
from .reference.fisher import InformationAxis
from .reference.pooling import Divide
from .reference.prototypes import Absent, Axis, Form
from .reference.representation import RegulariserForm
from .reference.similarity import Ignored, MapAxis


class MaskedPrototypePool(nn.Module):
    """:func:`masked_prototype_pool` with fixed options.

    Args:
        num_classes: K.
        divide: ``"once"`` or ``"twice"``.
    """

    def __init__(self, num_classes: int, divide: Divide = "once") -> None:
        super().__init__()
        self.num_classes, self.divide = num_classes, divide

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """``[M, B, C, h, w]`` and ``[B, H, W]`` to prototypes and counts."""
        return masked_prototype_pool(features, labels, self.num_classes, self.divide)


class PrototypeDivergence(nn.Module):
    """:func:`prototype_divergence` with fixed options.

    Args:
        axis: ``"class"`` or ``"channel"``.
        absent: ``"mask"`` or ``"zero_row"``.
        temperature: t.
    """

    def __init__(
        self, axis: Axis = "class", absent: Absent = "mask", temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.axis, self.absent, self.temperature = axis, absent, temperature

    def forward(self, student: Tensor, teacher: Tensor, counts: Tensor, pairing: Tensor) -> Tensor:
        """Prototypes, counts and pairing to a scalar."""
        return prototype_divergence(
            student,
            teacher,
            counts,
            pairing,
            axis=self.axis,
            absent=self.absent,
            temperature=self.temperature,
        )


class HybridPrototypeDistillation(nn.Module):
    """:func:`hybrid_prototype_distillation` with fixed options.

    Args:
        num_classes: K.
        form: ``"paper"`` or ``"code"``.
        axis: ``"class"`` or ``"channel"``.
        absent: ``"mask"`` or ``"zero_row"``.
        temperature: t.
    """

    def __init__(
        self,
        num_classes: int,
        form: Form = "paper",
        axis: Axis = "class",
        absent: Absent = "mask",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.form = num_classes, form
        self.axis, self.absent, self.temperature = axis, absent, temperature

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        labels: Tensor,
        pairing: Tensor | None = None,
        present: Sequence[int] | None = None,
    ) -> Tensor:
        """Features of all levels, labels and pairing to a scalar."""
        return hybrid_prototype_distillation(
            student_features, teacher_features, labels, self.num_classes, pairing,
            form=self.form, present=present, axis=self.axis, absent=self.absent,
            temperature=self.temperature,
        )  # fmt: skip


class PrototypeSimilarity(nn.Module):
    """:func:`prototype_similarity` with a fixed number of classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, features: Tensor, labels: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """``[M, B, C, h, w]`` and ``[B, H, W]`` to the map ``[M, B, h, w]``."""
        return prototype_similarity(features, labels, self.num_classes, prototypes)


class SimilarityDivergence(nn.Module):
    """:func:`similarity_divergence` with fixed options.

    Args:
        num_classes: K.
        axis: ``"row"`` or ``"map"``.
        ignored: ``"mask"`` or ``"one"``.
        temperature: t.
    """

    def __init__(
        self,
        num_classes: int,
        axis: MapAxis = "row",
        ignored: Ignored = "mask",
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.axis, self.ignored = num_classes, axis, ignored
        self.temperature = temperature

    def forward(
        self, student: Tensor, teacher: Tensor, labels: Tensor, selected: Tensor | None = None
    ) -> Tensor:
        """Maps of both networks and labels to a scalar."""
        return similarity_divergence(
            student, teacher, labels, self.num_classes, selected=selected, axis=self.axis,
            ignored=self.ignored, temperature=self.temperature,
        )  # fmt: skip


class IFVDistillation(nn.Module):
    """:func:`ifv_distillation` with fixed options.

    Args:
        num_classes: K.
        detach_prototypes: leave out the gradient through the class means.
        axis: ``"row"`` or ``"map"``.
        ignored: ``"mask"`` or ``"one"``.
        temperature: t.
    """

    def __init__(
        self,
        num_classes: int,
        detach_prototypes: bool = False,
        axis: MapAxis = "row",
        ignored: Ignored = "mask",
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.detach_prototypes = num_classes, detach_prototypes
        self.axis, self.ignored, self.temperature = axis, ignored, temperature

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        labels: Tensor,
        present: Sequence[int] | None = None,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Features of all levels and labels to a scalar."""
        return ifv_distillation(
            student_features, teacher_features, labels, self.num_classes, present=present,
            selected=selected, detach_prototypes=self.detach_prototypes, axis=self.axis,
            ignored=self.ignored, temperature=self.temperature,
        )  # fmt: skip


class FunctionalEntropy(nn.Module):
    """:func:`functional_entropy` along a fixed axis."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, values: Tensor) -> Tensor:
        """See :func:`functional_entropy`."""
        return functional_entropy(values, self.dim)


class RepresentationRegularisation(nn.Module):
    """:func:`representation_regularisation` with fixed options."""

    def __init__(
        self,
        samples: int = 2,
        form: RegulariserForm = "paper",
        normalise: bool = True,
        axis: InformationAxis = "channel",
        sigma_grad: bool = True,
    ) -> None:
        super().__init__()
        self.samples, self.form, self.normalise = samples, form, normalise
        self.axis, self.sigma_grad = axis, sigma_grad

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        seed: int | Tensor = 0,
    ) -> Tensor:
        """See :func:`representation_regularisation`."""
        return representation_regularisation(
            student_features,
            teacher_features,
            samples=self.samples,
            seed=seed,
            form=self.form,
            normalise=self.normalise,
            axis=self.axis,
            sigma_grad=self.sigma_grad,
        )


class SegmentationLoss(nn.Module):
    """:func:`segmentation_loss` with fixed options; ``class_weights`` are not part of the state."""

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: float = 1 / 16,
        ignore_index: int = 255,
        temperature: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.options: dict[str, Any] = {
            "threshold": threshold,
            "min_kept": min_kept,
            "ignore_index": ignore_index,
            "temperature": temperature,
        }

    def forward(
        self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both losses of a batch."""
        options = self.options | {"class_weights": self.class_weights}
        return segmentation_loss(logits, labels, teacher_logits, **options)


class UpsampleArgmax(nn.Module):
    """:func:`upsample_argmax` to a fixed size."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = (size[0], size[1])

    def forward(self, logits: Tensor) -> Tensor:
        """Most likely classes ``[B, H, W]``, uint8."""
        return upsample_argmax(logits, self.size)


class UpsampleConfusion(nn.Module):
    """:func:`upsample_confusion`, accumulated over calls in the buffer ``counts``."""

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        zero = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.register_buffer("counts", zero, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Count a batch; returns the accumulated counts ``[K, K]``."""
        self.counts += upsample_confusion(logits, labels, self.num_classes)
        return self.counts
