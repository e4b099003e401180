"""Similarity divergence: softmax divergences of similarity maps and their gradient, in one launch.

    L = t^2 / B sum_b sum_m KL( softmax(T[m, b] / t) || softmax(S[m, b] / t) )
    dL/dS[m, b] = t / B (p - q)

over the pixels of each row of the image, or, with a launch for the sums before, of the whole map.

With r = log p - log q a value is the sum of ``q (exp(r) - 1 - r)``, whose terms are not negative,
and r comes from the difference d of the logits, ``r = d - log(1 + sum q (exp(d) - 1))``: softmaxes
over hundreds of cosines are nearly uniform, and what they differ by keeps its digits in float32.

Source: L_ifv of RobustSeg, CVPR 2026.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.feature_maps import starts_of
from ..common.switch import DEVICES, runs_on
from ..prototypes.pool import MAX_CLASSES, as_integers
from ..reference import similarity as definition
from ..reference.similarity import Ignored, MapAxis
from .divergence_kernels import (
    Levels,
    _similarity_divergence_fwd_kernel,
    _similarity_divergence_sum_kernel,
)

MAX_ROW = 4096  # a tile holds the whole row
LEAST_TEMPERATURE = 0.05  # the smallest exponential, exp(-2 / t), is far from underflow


def tiles(axis: str, widest: int) -> dict[str, int]:
    """Tile of the kernels: some rows of at most so many pixels, or a part of a map."""
    block_a = 1024 if axis == "map" else max(16, triton.next_power_of_2(widest))
    block_g = max(1, 512 // block_a)
    return {
        "BLOCK_A": block_a, "BLOCK_G": block_g, "num_warps": min(16, block_a * block_g // 128),
    }  # fmt: skip


def diverge_maps(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    num_classes: int,
    sizes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    teacher_modalities: int,
    selected: Tensor | None,
    axis: str,
    ignored: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Value, and gradient of the student's maps, of all levels.

    Args:
        student: maps ``[len(rows), B, h, w]`` of every level, flat and one after the other.
        teacher: ``[teacher_modalities, B, h, w]`` likewise.
        labels: ``[B, H, W]``.
        num_classes: K.
        sizes: ``(h, w)`` of each level.
        rows: the teacher row of each student row.
        teacher_modalities: Mt.
        selected: see :func:`similarity_divergence`, like the rest.
        axis: ``"row"`` or ``"map"``.
        ignored: ``"mask"`` or ``"one"``.
        temperature: t.
    """
    whole, batch = axis == "map", labels.shape[0]
    tile = tiles(axis, max(w for _, w in sizes))
    blocks = [
        triton.cdiv(h * w, tile["BLOCK_A"]) if whole else triton.cdiv(h, tile["BLOCK_G"])
        for h, w in sizes
    ]
    programs = [len(rows) * batch * n for n in blocks]
    student_place, teacher_place = (
        starts_of([m * batch * h * w for h, w in sizes]) for m in (len(rows), teacher_modalities)
    )
    heights, widths = zip(*sizes, strict=True)
    levels = Levels(
        start=starts_of(programs),
        height=heights,
        width=widths,
        blocks=tuple(blocks),
        student_place=student_place,
        teacher_place=teacher_place,
    )
    strided = not any(labels.shape[1] % h or labels.shape[2] % w for h, w in sizes)
    arguments = (*labels.shape, *labels.stride(), num_classes, temperature)
    flags = {"STRIDED": strided, "ONE": ignored == "one"}
    table = torch.empty_like(student)
    values = student.new_empty(sum(programs))
    sums = student.new_empty((sum(programs), 2)) if whole else None
    with on_device_of(student):
        if sums is not None:
            _similarity_divergence_sum_kernel[(sum(programs),)](
                levels, tuple(rows), labels, student, teacher, sums, *arguments, **flags,
                BLOCK_A=tile["BLOCK_A"], num_warps=tile["num_warps"],
            )  # fmt: skip
        _similarity_divergence_fwd_kernel[(sum(programs),)](
            levels, tuple(rows), labels, student, teacher, selected, sums, table, values,
            *arguments, **flags, WHOLE=whole, SELECTED=selected is not None,
            BLOCK_S=triton.next_power_of_2(max(blocks)), **tile,
        )  # fmt: skip
    return values.sum(), table


def rows_fit(sizes: Sequence[tuple[int, int]], axis: str, temperature: float) -> bool:
    """True if the kernels take maps of these sizes ``(h, w)`` at this temperature."""
    fitting = axis == "map" or max(w for _, w in sizes) <= MAX_ROW
    return fitting and temperature >= LEAST_TEMPERATURE


@torch.library.custom_op("fastseg::similarity_divergence", mutates_args=(), device_types=DEVICES)
def _similarity_divergence(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    num_classes: int,
    selected: Tensor | None,
    axis: str,
    ignored: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    m, _, h, w = student.shape
    value, table = diverge_maps(
        student.contiguous(), teacher.contiguous(), labels, num_classes, [(h, w)], range(m), m,
        None if selected is None else selected.contiguous(), axis, ignored, temperature,
    )  # fmt: skip
    return value, table


@_similarity_divergence.register_fake
def _(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    num_classes: int,
    selected: Tensor | None,
    axis: str,
    ignored: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    return student.new_empty(()), student.new_empty(student.shape)


def _divergence_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _divergence_backward(ctx: Any, grad: Tensor, _table: Tensor | None) -> tuple[Any, ...]:
    (table,) = ctx.saved_tensors
    return (table * grad, *[None] * 7)


_similarity_divergence.register_autograd(_divergence_backward, setup_context=_divergence_context)


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
    gradient is ``t / B (p - q)``, and has itself none; the teacher is constant. On a GPU results
    repeat bit by bit and nothing waits for the device. Float64, temperatures below 0.05, more than
    256 classes and rows of more than 4096 pixels take the definition.

    Args:
        student: ``[M, B, h, w]`` of :func:`prototype_similarity`, any float dtype.
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
        A float32 scalar, at least zero. Without a labelled pixel it is zero, with zero gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit or an option is unknown.

    Source: L_ifv of RobustSeg, CVPR 2026, whose text leaves the axis open; temperature, axis and
    factor of t^2 as in ``mmkd/IFV.py`` of github.com/RobustSeg/RMMSS at d5dd5d8.
    """
    for name, x in {"student": student, "teacher": teacher}.items():
        if not x.is_floating_point():
            raise ValueError(f"similarities must be floats, got {x.dtype} of the {name}")
    tensors = [student, teacher, labels, *([] if selected is None else [selected])]
    if len(devices := {x.device for x in tensors}) > 1:
        raise ValueError(f"expected all tensors on one device, got {sorted(map(str, devices))}")
    # what the definition rejects, the kernel does not take
    fits = (
        student.ndim == 4
        and student.shape == teacher.shape
        and labels.ndim == 3
        and len(labels) == student.shape[1]
        and min(student.numel(), labels.numel()) > 0
        and not (labels.is_floating_point() or labels.is_complex())
        and 1 <= num_classes <= MAX_CLASSES
        and rows_fit([(student.shape[2], student.shape[3])], axis, temperature)
    )
    if fits:
        definition.check_options(axis, ignored, selected, (student.shape[0], student.shape[1]))
    if not (fits and runs_on(student)):
        return definition.similarity_divergence(
            student, teacher, labels, num_classes,
            selected=selected, axis=axis, ignored=ignored, temperature=temperature,
        )  # fmt: skip
    value: Tensor
    value, _ = _similarity_divergence(
        student.float(), teacher.detach().float(), as_integers(labels), num_classes, selected,
        axis, ignored, temperature,
    )  # fmt: skip
    return value
