"""Distillation of the intra-class feature variation: all levels of both networks in one operator.

    L_ifv = sum_levels similarity_divergence( similarity(student), similarity(teacher) )

Forward pools the features, compares every pixel with its class's mean and then the maps with each
other: two reads of the features, four launches and a sum. Backward is that of
:mod:`.cosine`, three launches. Nothing waits for the host.

Source: L_ifv of RobustSeg, CVPR 2026; the published code loops over samples, levels, modalities and
classes and goes over full-size maps for every class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.switch import DEVICES
from ..prototypes.pool import as_integers, pool_maps, served, sizes_of
from ..reference import similarity as definition
from ..reference.similarity import Ignored, MapAxis
from .cosine import prototype_similarity_bwd
from .divergence import diverge_maps, rows_fit
from .maps import MAX_CHANNELS, pixels_of, similarity_maps


@torch.library.custom_op("fastseg::ifv_distillation", mutates_args=(), device_types=DEVICES)
def _ifv_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    rows: Sequence[int],
    selected: Tensor | None,
    through: bool,
    axis: str,
    ignored: str,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Value, gradient of the student's maps, and what backward needs: all flat, all levels.

    That is the maps of both networks, one over the lengths of the student's pixels, the prototypes
    of both networks and the counts ``[2 L, B, K]``.
    """
    features = [*student, *teacher]
    prototypes, counts = pool_maps(features, labels, num_classes, False)
    similarities, inverses = similarity_maps(
        features, labels, prototypes, num_classes, len(student)
    )
    split = sum(pixels_of([x.shape for x in student]))
    value, table = diverge_maps(
        similarities[:split], similarities[split:], labels, num_classes,
        [(x.shape[3], x.shape[4]) for x in student], rows, len(teacher[0]),
        None if selected is None else selected.contiguous(), axis, ignored, temperature,
    )  # fmt: skip
    return value, table, similarities, inverses, prototypes, counts


@_ifv_distillation.register_fake
def _(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    rows: Sequence[int],
    selected: Tensor | None,
    through: bool,
    axis: str,
    ignored: str,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = [x.shape for x in (*student, *teacher)]
    own, both = sum(pixels_of(shapes[: len(student)])), sum(pixels_of(shapes))
    value, table, similarities, inverses, prototypes = (
        labels.new_empty(shape, dtype=torch.float32)
        for shape in ((), own, both, own, sum(sizes_of(shapes, num_classes)))
    )
    counts = labels.new_empty((len(shapes), labels.shape[0], num_classes), dtype=torch.int64)
    return value, table, similarities, inverses, prototypes, counts


def _ifv_context(ctx: Any, inputs: Any, output: Any) -> None:
    student, _, labels, ctx.num_classes, _, _, ctx.through, *_ = inputs
    ctx.save_for_backward(*student, labels, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _ifv_backward(ctx: Any, grad: Tensor, *_others: Tensor | None) -> tuple[Any, ...]:
    *student, labels, table, similarities, inverses, prototypes, counts = ctx.saved_tensors
    grads, _ = prototype_similarity_bwd(
        table, grad, student, labels, similarities, inverses, prototypes, counts,
        ctx.num_classes, ctx.through,
    )  # fmt: skip
    return (grads, [None] * len(grads), *[None] * 8)


_ifv_distillation.register_autograd(_ifv_backward, setup_context=_ifv_context)


def ifv_distillation(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    *,
    present: Sequence[int] | None = None,
    selected: Tensor | None = None,
    detach_prototypes: bool = False,
    axis: MapAxis = "row",
    ignored: Ignored = "mask",
    temperature: float = 2.0,
) -> Tensor:
    """Distillation of the intra-class feature variation: similarity maps of every level.

        L_ifv = sum_levels similarity_divergence( similarity(student), similarity(teacher) )

    Each student modality learns from the *same* teacher modality. With ``ignored="one"`` this is
    what the released code computes for every modality; its weight of 12 is not included.

    On a GPU results repeat bit by bit, nothing waits for the device, and the gradient itself has
    none. Float64, empty features, temperatures below 0.05, more than 256 classes or 4096 channels,
    and over rows more than 4096 pixels in one, take the definition.

    Args:
        student_features: per level ``[Ms, B, C, h, w]``, any float dtype; see
            :func:`masked_prototype_pool` for the strides that are read in place.
        teacher_features: per level ``[Mt, B, C', h, w]``; constant. The channels may differ.
        labels: ``[B, H, W]`` integers; values outside ``[0, num_classes)`` are ignored.
        num_classes: K.
        present: the teacher modality of each student row; by default row for row.
        selected: ``[Ms, B]`` bool, the student modalities of each sample that take part; the paper
            takes the dominant ones. All by default.
        detach_prototypes: leave out the gradient through the class means, which saves backward a
            read of the features. Papers and released code keep it.
        axis: see :func:`similarity_divergence`, like the next two.
        ignored: ``"mask"`` or ``"one"``.
        temperature: t.

    Returns:
        A float32 scalar; zero with zero gradient when every pixel is ignored.

    Raises:
        ValueError: shapes, dtypes, devices, number of levels or options do not fit.

    Source: L_ifv of RobustSeg, CVPR 2026; ``mmkd/IFV.py`` of github.com/RobustSeg/RMMSS at d5dd5d8.
    """
    student, teacher = list(student_features), [x.detach() for x in teacher_features]
    rows = definition.teacher_rows(student, teacher, present)
    if selected is not None and selected.device != labels.device:
        raise ValueError(
            f"expected selected and labels on one device, got {selected.device} and {labels.device}"
        )
    definition.check_options(axis, ignored, selected, (len(rows), student[0].shape[1]))
    teacher, rows = _needed(teacher, rows)
    # what the definition rejects, the kernels do not take
    if not (
        rows
        and served([*student, *teacher], labels, num_classes)
        and max(x.shape[2] for x in (*student, *teacher)) <= MAX_CHANNELS
        and rows_fit([(x.shape[3], x.shape[4]) for x in student], axis, temperature)
    ):
        return definition.ifv_distillation(
            student, teacher, labels, num_classes, present=rows, selected=selected,
            detach_prototypes=detach_prototypes, axis=axis, ignored=ignored,
            temperature=temperature,
        )  # fmt: skip
    value: Tensor
    value, *_ = _ifv_distillation(
        student, teacher, as_integers(labels), num_classes, rows, selected,
        not detach_prototypes, axis, ignored, temperature,
    )  # fmt: skip
    return value


def _needed(teacher: list[Tensor], rows: list[int]) -> tuple[list[Tensor], list[int]]:
    """The smallest evenly spaced modalities of the teacher that hold all rows, as views."""
    if not rows:
        return teacher, rows
    first, last = min(rows), max(rows)
    step = math.gcd(*(row - first for row in rows)) or 1
    return [x[first : last + 1 : step] for x in teacher], [(row - first) // step for row in rows]
