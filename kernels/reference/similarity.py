"""Prototype similarity: how alike each pixel and its class are, and the distillation of that map.

The map is the intra-class feature variation (IFV): where prototypes keep one vector per class, it
keeps how far every pixel is from that vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .divergence import softmax_divergence
from .pooling import class_assignment, level_labels, masked_prototype_pool, pool
from .precision import upcast, without_autocast

MapAxis = Literal["row", "map"]
Ignored = Literal["mask", "one"]

# vectors shorter than this have no direction; the released code divides by no less than this
LEAST_NORM = 1e-8


def _directions(x: Tensor, dim: int) -> Tensor:
    """Unit vectors along ``dim``; zero, without a gradient, for what has no direction."""
    squares = x.square().sum(dim, keepdim=True)
    there = squares > LEAST_NORM**2
    return x * squares.where(there, 1.0).rsqrt().where(there, 0.0)


@without_autocast
def prototype_similarity(
    features: Tensor, labels: Tensor, num_classes: int, prototypes: Tensor | None = None
) -> Tensor:
    """Cosine between every pixel and the prototype of its own class.

        M[m, b, p] = <x_p, P_y> / (|x_p| |P_y|),   x = features[m, b],  P = prototypes[m, b]

    with y the label of pixel p at the features' resolution (:func:`level_labels`). By default the
    prototypes are the class means of the same features, and the gradient is the exact one: through
    the pixel and through the mean that it is part of, as in the released code. Prototypes that are
    given get a gradient of their own; detach them to leave that path out.

        dL/dx_p = u_p / |x_p| (P^ - M_p x^_p) + G_y / n_y,   u = dL/dM,  x^ and P^ of length one
        G_k = dL/dP_k = sum_{p : y = k} u_p / |P_k| (x^_p - M_p P^_k)

    Args:
        features: ``[M, B, C, h, w]``, any float dtype, any strides.
        labels: ``[B, H, W]`` integers at full resolution; values outside ``[0, num_classes)``,
            such as 255, are ignored.
        num_classes: K, at least 1.
        prototypes: ``[M, B, K, C]`` to compare with instead.

    Returns:
        ``[M, B, h, w]`` float32 (float64 for float64 features) in ``[-1, 1]``. Zero, without a
        gradient, at ignored pixels and where pixel or prototype is shorter than 1e-8.

    Raises:
        ValueError: the shapes do not agree or ``num_classes`` is not positive.

    Source: the IFV map of RobustSeg, CVPR 2026, with the centre map of "Intra-class Feature
    Variation Distillation for Semantic Segmentation", ECCV 2020; ``mmkd/IFV.py`` of
    github.com/RobustSeg/RMMSS at d5dd5d8. There an ignored pixel is its own centre and its map one.
    """
    if features.ndim != 5 or labels.ndim != 3 or labels.shape[0] != features.shape[1]:
        raise ValueError(
            f"expected features [M, B, C, h, w] and labels [B, H, W] of the same B, "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    m, b, c, h, w = features.shape
    assignment, counts = class_assignment(level_labels(labels, (h, w)), num_classes)
    # once, so that both parts of the gradient add up before they are rounded
    features = upcast(features)
    if prototypes is None:
        prototypes = pool(features, assignment, counts, "once")
    elif prototypes.shape != (m, b, num_classes, c):
        raise ValueError(
            f"expected prototypes [M, B, K, C] of shape {(m, b, num_classes, c)}, "
            f"got {tuple(prototypes.shape)}"
        )
    pixels = _directions(features.flatten(3), 2)
    cosines = _directions(prototypes.to(features.dtype), 3) @ pixels  # [M, B, K, P]
    # a sum over the classes and not an index, whose backward would add atomically
    own = cosines.where(assignment.transpose(1, 2), 0.0).sum(2)
    # rounding may leave the interval
    return own.clamp(-1, 1).view(m, b, h, w)


@without_autocast
def similarity_divergence(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    selected: Tensor | None = None,
    axis: MapAxis = "row",
    ignored: Ignored = "mask",
    temperature: float = 2.0,
) -> Tensor:
    """Divergence of the similarity maps of student and teacher, row for row.

        L = t^2 / B sum_b sum_m KL( softmax(teacher[m, b] / t) || softmax(student[m, b] / t) )

    over the pixels of each image row, summed over the rows, or over all pixels of the map. The
    gradient is ``t / B (p - q)``; the teacher is constant.

    Args:
        student: ``[M, B, h, w]`` of :func:`prototype_similarity`.
        teacher: the same shape; constant.
        labels: ``[B, H, W]`` integers at full resolution; values outside ``[0, num_classes)`` are
            ignored.
        num_classes: K, at least 1.
        selected: ``[M, B]`` bool, the modalities of each sample that take part, such as its
            dominant ones; all by default.
        axis: ``"row"`` is what the released code uses and what the published weight of 12 belongs
            to; the loss grows with the height of the map. ``"map"`` is one softmax over all pixels
            and needs a weight of its own.
        ignored: ``"mask"`` leaves ignored pixels out of both softmaxes; ``"one"`` keeps them in
            with a similarity of one, as the released code does. They have no gradient either way.
        temperature: t, positive; 2 in the released code.

    Returns:
        A scalar, at least zero. Without a labelled pixel it is zero, with zero gradient.

    Raises:
        ValueError: the shapes do not agree or an option is unknown.

    Source: L_ifv of RobustSeg, CVPR 2026, whose text leaves the axis open; temperature, axis and
    factor of t^2 as in ``mmkd/IFV.py`` of github.com/RobustSeg/RMMSS at d5dd5d8.
    """
    if (
        student.ndim != 4
        or student.shape != teacher.shape
        or labels.shape[:1] != student.shape[1:2]
    ):
        raise ValueError(
            f"expected two maps [M, B, h, w] of one shape and labels [B, H, W] of the same B, "
            f"got {tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(labels.shape)}"
        )
    check_options(axis, ignored, selected, (student.shape[0], student.shape[1]))
    resized = level_labels(labels, (student.shape[2], student.shape[3]))
    seen = class_assignment(resized, num_classes)[0].any(2).view(resized.shape)
    student = upcast(student)
    teacher = teacher.detach().to(student.dtype)
    if selected is not None:
        # equal maps diverge by nothing
        student = student.where(selected[..., None, None], teacher)
    fill = 1.0 if ignored == "one" else 0.0
    student, teacher = student.where(seen, fill), teacher.where(seen, fill)
    if axis == "map":
        student, teacher, seen = student.flatten(2), teacher.flatten(2), seen.flatten(1)
    # where nothing is seen, the constant maps take part: they diverge by nothing
    present = None if ignored == "one" else seen | ~seen.any(-1, keepdim=True)
    divergence = softmax_divergence(student, teacher, -1, temperature=temperature, present=present)
    return divergence * (temperature**2 / max(labels.shape[0], 1))


def teacher_rows(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    present: Sequence[int] | None,
) -> list[int]:
    """The teacher modality of each student row.

    Raises:
        ValueError: the levels do not match, or ``present`` does not name a teacher modality for
            each student row.
    """
    if not student_features or len(student_features) != len(teacher_features):
        raise ValueError(
            f"expected the same number of levels of both networks, at least one, "
            f"got {len(student_features)} and {len(teacher_features)}"
        )
    for level, pair in enumerate(zip(student_features, teacher_features, strict=True)):
        student, teacher = (tuple(x.shape) for x in pair)
        fits = len(student) == len(teacher) == 5 and student[1] == teacher[1]
        if not fits or student[3:] != teacher[3:]:
            raise ValueError(
                f"level {level}: expected features [Ms, B, C, h, w] and [Mt, B, C', h, w], "
                f"got {student} and {teacher}"
            )
    numbers = {(len(s), len(t)) for s, t in zip(student_features, teacher_features, strict=True)}
    own, others = min(numbers)
    rows = list(range(own) if present is None else present)
    if (
        len(numbers) > 1
        or len(rows) != own
        or (present is None and own != others)
        or not all(0 <= row < others for row in rows)
    ):
        raise ValueError(
            f"expected one teacher modality for each student row at every level, got (Ms, Mt) "
            f"{sorted(numbers)} and present={present}"
        )
    return rows


def check_options(axis: str, ignored: str, selected: Tensor | None, shape: tuple[int, int]) -> None:
    """Reject options that :func:`similarity_divergence` does not know.

    Raises:
        ValueError: an option is unknown, or ``selected`` is not bool of this shape.
    """
    if axis not in ("row", "map") or ignored not in ("mask", "one"):
        raise ValueError(
            f'axis must be "row" or "map" and ignored "mask" or "one", got {axis!r} and {ignored!r}'
        )
    if selected is not None and (selected.shape != shape or selected.dtype != torch.bool):
        raise ValueError(
            f"expected selected [M, B] of shape {shape} and dtype bool, "
            f"got {tuple(selected.shape)} and {selected.dtype}"
        )


@without_autocast
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

    Args:
        student_features: per level ``[Ms, B, C, h, w]``, any float dtype.
        teacher_features: per level ``[Mt, B, C', h, w]``; constant. The channels may differ.
        labels: ``[B, H, W]`` integers; values outside ``[0, num_classes)`` are ignored.
        num_classes: K.
        present: the teacher modality of each student row; by default row for row.
        selected: ``[Ms, B]`` bool, the student modalities of each sample that take part; the paper
            takes the dominant ones. All by default.
        detach_prototypes: leave out the gradient through the class means. Papers and released code
            keep it.
        axis: see :func:`similarity_divergence`, like the next two.
        ignored: ``"mask"`` or ``"one"``.
        temperature: t.

    Returns:
        A scalar; zero with zero gradient when every pixel is ignored.

    Raises:
        ValueError: shapes, number of levels or options do not fit.

    Source: L_ifv of RobustSeg, CVPR 2026; ``mmkd/IFV.py`` of github.com/RobustSeg/RMMSS at d5dd5d8.
    """
    rows = teacher_rows(student_features, teacher_features, present)
    total = labels.new_zeros((), dtype=torch.float32)
    for student, teacher in zip(student_features, teacher_features, strict=True):
        prototypes = None
        if detach_prototypes:
            prototypes, _ = masked_prototype_pool(student.detach(), labels, num_classes)
        with torch.no_grad():
            wanted = prototype_similarity(teacher[rows], labels, num_classes)
        total = total + similarity_divergence(
            prototype_similarity(student, labels, num_classes, prototypes),
            wanted,
            labels,
            num_classes,
            selected=selected,
            axis=axis,
            ignored=ignored,
            temperature=temperature,
        )
    return total
