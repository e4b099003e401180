"""Prototype distillation: divergence of class prototypes across modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .divergence import softmax_divergence
from .pooling import class_assignment, level_labels, pool
from .precision import without_autocast

Axis = Literal["class", "channel"]
Absent = Literal["mask", "zero_row"]
Form = Literal["paper", "code"]


@without_autocast
def prototype_divergence(
    student: Tensor,
    teacher: Tensor,
    counts: Tensor,
    pairing: Tensor,
    *,
    axis: Axis = "class",
    absent: Absent = "mask",
    temperature: float = 1.0,
) -> Tensor:
    """Divergence of paired student and teacher prototypes.

        L = t^2 / (B K C) sum_b sum_m KL( q[m, b] || p[pairing[b, m], b] )

    with q of the teacher and p of the student softmaxes at temperature t over the classes of each
    channel (``axis="class"``) or over the channels of each class, and KL summed over the other
    axis. The gradient with respect to the paired student row is ``t / (B K C) (p - q)``; the
    teacher is constant.

    Args:
        student: prototypes ``[Ms, B, K, C]``.
        teacher: prototypes ``[Mt, B, K, C]``.
        counts: ``[B, K]``, pixels of each class; a class is absent where it is zero.
        pairing: ``[B, Mt]`` int64, the student row that each teacher modality teaches.
        axis: ``"class"`` is what the released code uses and the default; ``"channel"`` compares the
            channel profile of each class.
        absent: ``"mask"`` leaves absent classes out of both softmaxes; ``"zero_row"`` keeps their
            zero prototypes in, as the released code does. Over channels the two are the same: equal
            rows diverge by nothing.
        temperature: t, positive.

    Returns:
        A scalar, at least zero. It is zero, with zero gradient, for a sample without a labelled
        pixel and, over classes with ``"mask"``, for a sample with a single class.

    Raises:
        ValueError: the shapes do not agree or an option is unknown.

    Source: L_hp of RobustSeg, arXiv:2505.12861v1. The text leaves axis, reduction and absent
    classes open; the mean over K C keeps the published weight of 100 meaningful (sums over classes
    and means over channels would need 100 / K).
    """
    if (
        student.ndim != 4
        or teacher.ndim != 4
        or student.shape[1:] != teacher.shape[1:]
        or counts.shape != student.shape[1:3]
        or pairing.shape != (teacher.shape[1], teacher.shape[0])
    ):
        raise ValueError(
            f"expected prototypes [Ms, B, K, C] and [Mt, B, K, C], counts [B, K] and pairing "
            f"[B, Mt], got {tuple(student.shape)}, {tuple(teacher.shape)}, "
            f"{tuple(counts.shape)} and {tuple(pairing.shape)}"
        )
    if axis not in ("class", "channel") or absent not in ("mask", "zero_row"):
        raise ValueError(
            f'axis must be "class" or "channel" and absent "mask" or "zero_row", '
            f"got {axis!r} and {absent!r}"
        )
    _, batch, num_classes, channels = teacher.shape
    present = None
    if axis == "class" and absent == "mask":
        seen = counts > 0
        # a sample without any class keeps its zero rows, which diverge by nothing
        present = (seen | ~seen.any(1, keepdim=True)).unsqueeze(-1)
    # a product with one-hot rows and not an index: rows that teach twice add up their gradients in
    # a fixed order, where the backward of indexing depends on the threads
    each = torch.arange(len(student), device=pairing.device)
    chosen = (pairing.unsqueeze(2) == each).to(student.dtype)
    rows = student.permute(1, 0, 2, 3).flatten(2)
    paired = (chosen @ rows).reshape(batch, -1, num_classes, channels).transpose(0, 1)
    divergence = softmax_divergence(
        paired,
        teacher,
        2 if axis == "class" else 3,
        temperature=temperature,
        present=present,
    )
    return divergence * (temperature**2 / (batch * num_classes * channels))


def _published_prototype_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over the samples and modalities of ``[M, B, K, C]`` of the released code's divergence."""
    log_q = teacher.detach().log_softmax(2)
    terms = log_q.exp() * (log_q - student.log_softmax(2))
    return terms.mean((2, 3)).clamp(min=0).sum()


def _check_levels(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> None:
    if not student_features or len(student_features) != len(teacher_features):
        raise ValueError(
            f"expected the same number of levels of both networks, at least one, "
            f"got {len(student_features)} and {len(teacher_features)}"
        )
    for level, (student, teacher) in enumerate(
        zip(student_features, teacher_features, strict=True)
    ):
        if student.ndim != 5 or teacher.ndim != 5 or student.shape[1:] != teacher.shape[1:]:
            raise ValueError(
                f"level {level}: expected features [Ms, B, C, h, w] and [Mt, B, C, h, w], "
                f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
            )


@without_autocast
def hybrid_prototype_distillation(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    pairing: Tensor | None = None,
    *,
    form: Form = "paper",
    present: Sequence[int] | None = None,
    axis: Axis = "class",
    absent: Absent = "mask",
    temperature: float = 1.0,
) -> Tensor:
    """Hybrid prototype distillation: prototypes of every level, matched across modalities.

        L_hp = sum_levels prototype_divergence( pool(student), pool(teacher), pairing )

    ``form="code"`` computes what the released ``mmkd/PCUMD.py`` computes: prototypes divided by the
    class count twice, softmaxes over the classes with absent classes as zero rows, the plain mean
    of ``q (log q - log p)`` over K C clamped at zero, each student modality against the *same*
    teacher modality, summed over student modalities and levels and divided by B. The script's
    weight of 100 is not included. The second division leaves it to classes of few pixels: at 1024
    pixels its two finest levels are below float32 rounding, while at the coarsest the gradient is
    as large as the paper form's (norms 0.041 and 0.039, MiT-B0 with random weights); at 512 pixels
    so it is at the two coarsest.

    Args:
        student_features: per level ``[Ms, B, C, h, w]``, any float dtype.
        teacher_features: per level ``[Mt, B, C, h, w]``; constant.
        labels: ``[B, H, W]`` integers; values outside ``[0, num_classes)`` are ignored.
        num_classes: K.
        pairing: ``[B, Mt]`` int64, the student row for each teacher modality; needed by the paper
            form (the papers draw a permutation per sample), not used by the code form.
        form: ``"paper"`` or ``"code"``.
        present: code form only: the teacher modality of each student row; by default row for row.
        axis: see :func:`prototype_divergence`; paper form only, like the next two.
        absent: see :func:`prototype_divergence`.
        temperature: see :func:`prototype_divergence`.

    Returns:
        A scalar; zero with zero gradient when every pixel is ignored.

    Raises:
        ValueError: shapes, number of levels or options do not fit.

    Source: arXiv:2505.12861v1, L_hp; arXiv:2505.12861v2 and the CVPR 2026 version (L_cp) define it
    alike. Code form: github.com/RobustSeg/RobustSeg at ea9add7.
    """
    _check_levels(student_features, teacher_features)
    if form not in ("paper", "code"):
        raise ValueError(f'form must be "paper" or "code", got {form!r}')
    if form == "paper" and pairing is None:
        raise ValueError("the paper form needs a pairing [B, Mt]; draw one with draw_pairing")
    rows = list(range(student_features[0].shape[0]) if present is None else present)
    num_teacher = teacher_features[0].shape[0]
    if form == "code" and (
        len(rows) != student_features[0].shape[0]
        or (present is None and len(rows) != num_teacher)
        or any(not 0 <= row < num_teacher for row in rows)
    ):
        raise ValueError(
            f"the code form needs one teacher modality of {num_teacher} for each of the "
            f"{student_features[0].shape[0]} student rows, got present={present}"
        )
    total = labels.new_zeros((), dtype=torch.float32)
    for student, teacher in zip(student_features, teacher_features, strict=True):
        resized = level_labels(labels, (student.shape[3], student.shape[4]))
        assignment, counts = class_assignment(resized, num_classes)
        teacher = teacher.detach()
        if form == "code":
            of_student = pool(student, assignment, counts, "twice")
            of_teacher = pool(teacher[rows], assignment, counts, "twice")
            divergence = _published_prototype_divergence(of_student, of_teacher)
            total = total + divergence / labels.shape[0]
        else:
            assert pairing is not None
            total = total + prototype_divergence(
                pool(student, assignment, counts, "once"),
                pool(teacher, assignment, counts, "once"),
                counts,
                pairing,
                axis=axis,
                absent=absent,
                temperature=temperature,
            )
    return total
