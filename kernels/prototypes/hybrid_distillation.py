"""Hybrid prototype distillation: pooling of all levels of both networks, then their divergence.

    L_hp = sum_levels prototype_divergence( pool(student), pool(teacher), pairing )
    dL/dx[n, b, :, p] = table[n, b, y_p] / count[b, y_p]

One launch sums the features, one reduces the sums, one gives values and the table of gradients, one
adds the values up; backward is a single gather. The label map stays at full resolution and the
teacher's features are never permuted or copied. Nothing waits for the host.

Source: L_hp of RobustSeg, arXiv:2505.12861; the published code loops over samples, levels,
modalities and classes and waits for the GPU at every class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..common.feature_maps import layout_of
from ..common.switch import DEVICES
from ..reference.prototypes import Absent, Axis, Form
from .divergence import MAX_AXIS, diverge, options_fit
from .pool import as_integers, pool_maps, prototype_pool_bwd, served, sizes_of


@torch.library.custom_op(
    "fastseg::hybrid_prototype_distillation", mutates_args=(), device_types=DEVICES
)
def _hybrid_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    pairing: Tensor | None,
    rows: Sequence[int],
    axis: str,
    absent: str,
    temperature: float,
    twice: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, flat gradient of the student's prototypes, counts ``[2 L, B, K]`` of all maps."""
    prototypes, counts = pool_maps([*student, *teacher], labels, num_classes, twice)
    split = sum(sizes_of([x.shape for x in student], num_classes))
    value, table = diverge(
        prototypes[:split],
        prototypes[split:],
        counts,
        None if pairing is None else pairing.contiguous(),
        [x.shape[2] for x in student],
        len(student[0]),
        rows,
        len(teacher[0]),
        axis,
        absent,
        temperature,
    )
    return value, table, counts


@_hybrid_distillation.register_fake
def _(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    pairing: Tensor | None,
    rows: Sequence[int],
    axis: str,
    absent: str,
    temperature: float,
    twice: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    size = sum(sizes_of([x.shape for x in student], num_classes))
    counts = labels.new_empty((2 * len(student), labels.shape[0], num_classes), dtype=torch.int64)
    scalar = labels.new_empty((), dtype=torch.float32)
    return scalar, labels.new_empty(size, dtype=torch.float32), counts


def _hybrid_context(ctx: Any, inputs: Any, output: Any) -> None:
    student, labels, ctx.twice = inputs[0], inputs[2], inputs[9]
    ctx.layouts = [number for x in student for number in layout_of(x)]
    _, table, counts = output
    ctx.save_for_backward(table, labels, counts)
    ctx.mark_non_differentiable(table, counts)
    ctx.set_materialize_grads(False)


def _hybrid_backward(ctx: Any, grad: Tensor | None, *_others: Tensor | None) -> tuple[Any, ...]:
    table, labels, counts = ctx.saved_tensors
    nothing = [None] * (len(counts) // 2)
    if grad is None:
        return (nothing, nothing, *[None] * 8)
    grads = prototype_pool_bwd(table, grad, labels, counts, ctx.layouts, ctx.twice)
    return (grads, nothing, *[None] * 8)


_hybrid_distillation.register_autograd(_hybrid_backward, setup_context=_hybrid_context)


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
    over K C, each student modality against the *same* teacher modality, summed over student
    modalities and levels and divided by B. The script's weight of 100 is not included. It acts
    through classes of few pixels, and so at the coarse levels: see the definition. On a GPU the
    value has no cancellation, and so no need for the clamp at zero of the released code, which
    also stops the gradient where rounding turned a value negative.

    On a GPU results repeat bit by bit, nothing waits for the device, and the gradient itself has
    none. Float64, empty features, more than 256 classes or 4096 channels take the definition.

    Args:
        student_features: per level ``[Ms, B, C, h, w]``, any float dtype; see
            :func:`masked_prototype_pool` for the strides that are read in place.
        teacher_features: per level ``[Mt, B, C, h, w]``; constant.
        labels: ``[B, H, W]`` integers; values outside ``[0, num_classes)`` are ignored.
        num_classes: K.
        pairing: ``[B, Mt]`` integers in ``[0, Ms)``, the student row for each teacher modality;
            needed by the paper form (the papers draw a permutation per sample), not used by the
            code form. On a GPU a value outside teaches none.
        form: ``"paper"`` or ``"code"``.
        present: code form only: the teacher modality of each student row; by default row for row.
        axis: see :func:`prototype_divergence`; paper form only, like the next two.
        absent: see :func:`prototype_divergence`.
        temperature: see :func:`prototype_divergence`.

    Returns:
        A float32 scalar; zero with zero gradient when every pixel is ignored.

    Raises:
        ValueError: shapes, dtypes, devices, number of levels or options do not fit.

    Source: arXiv:2505.12861v1, L_hp; arXiv:2505.12861v2 and the CVPR 2026 version (L_cp) define it
    alike. Code form: github.com/RobustSeg/RobustSeg at ea9add7.
    """
    student, teacher = list(student_features), [x.detach() for x in teacher_features]
    if pairing is not None and pairing.device != labels.device:
        raise ValueError(
            f"expected pairing and labels on one device, got {pairing.device} and {labels.device}"
        )
    rows = _teacher_rows(student, teacher, labels, pairing, form, present)
    # what the definition rejects, the kernels do not take
    if (
        rows is None
        or not options_fit(axis, absent, temperature)
        or not served([*student, *teacher], labels, num_classes)
        or max(x.shape[2] for x in student) > MAX_AXIS
    ):
        return reference.hybrid_prototype_distillation(
            student, teacher, labels, num_classes, pairing,
            form=form, present=present, axis=axis, absent=absent, temperature=temperature,
        )  # fmt: skip
    if form == "code":
        pairing, axis, absent, temperature = None, "class", "zero_row", 1.0
    value: Tensor = _hybrid_distillation(
        student, teacher, as_integers(labels), num_classes, pairing, rows, axis, absent,
        temperature, form == "code",
    )[0]  # fmt: skip
    return value


def _teacher_rows(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    labels: Tensor,
    pairing: Tensor | None,
    form: str,
    present: Sequence[int] | None,
) -> list[int] | None:
    """Teacher rows in the order of the pairing, or of the student's; None where shapes differ."""
    if (
        not student
        or len(student) != len(teacher)
        or any(x.ndim != 5 for x in (*student, *teacher))
        or any(x.shape[1:] != y.shape[1:] for x, y in zip(student, teacher, strict=True))
        or len({len(x) for x in student}) > 1
        or len({len(x) for x in teacher}) > 1
    ):
        return None
    own, others = len(student[0]), len(teacher[0])
    if form == "paper":
        fits = (
            pairing is not None
            and pairing.shape == (len(labels), others)
            and not pairing.is_floating_point()
        )
        return list(range(others)) if fits else None
    rows = list(range(own) if present is None else present)
    known = len(rows) == own and all(0 <= row < others for row in rows)
    return rows if form == "code" and known and (present is not None or own == others) else None
