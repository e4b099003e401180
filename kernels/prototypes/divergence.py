"""Prototype divergence: softmax divergences of paired prototypes and their gradient, in one launch.

    L = t^2 / (B K C) sum_b sum_m KL( softmax(T[m, b] / t) || softmax(S[pairing[b, m], b] / t) )
    dL/dS[n, b] = t / (B K C) sum_{m : pairing[b, m] = n} (p - q)

over the classes of each channel or the channels of each class. A program holds a tile of a student
row and goes through the teacher rows that are paired with it: a pairing is an index, nothing is
added atomically, and the table of gradients comes with the values. All levels share the launch.

With r = log p - log q a value is the sum of ``q (exp(r) - 1 - r)``, whose terms are not negative,
and r is taken from the difference of the logits: a value of 1e-6 keeps its digits in float32.

Source: L_hp of RobustSeg, arXiv:2505.12861.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .. import reference
from ..common.device import on_device_of
from ..common.feature_maps import starts_of
from ..common.switch import DEVICES, runs_on
from ..reference.prototypes import Absent, Axis
from .divergence_kernels import Levels, _prototype_divergence_fwd_kernel
from .pool import sizes_of

MAX_AXIS = 4096  # classes or channels: a tile holds the whole axis


def tiles(length: int) -> dict[str, int]:
    """Tile of the kernel for distributions over so many entries, four for a thread."""
    block_a = max(16, triton.next_power_of_2(length))
    block_g = max(1, 512 // block_a)
    return {
        "BLOCK_A": block_a, "BLOCK_G": block_g, "num_warps": min(16, block_a * block_g // 128),
    }  # fmt: skip


def diverge(
    student: Tensor,
    teacher: Tensor,
    counts: Tensor,
    pairing: Tensor | None,
    channels: Sequence[int],
    modalities: int,
    rows: Sequence[int],
    teacher_modalities: int,
    axis: str,
    absent: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Value, and gradient of the flat student prototypes, of all levels.

    Args:
        student: prototypes ``[Ms, B, K, C]`` of every level, flat and one after the other.
        teacher: ``[Mt, B, K, C]`` likewise.
        counts: ``[L, B, K]``.
        pairing: ``[B, len(rows)]``, the student row of each entry of rows; None: row for row.
        channels: C of each level.
        modalities: Ms.
        rows: teacher rows.
        teacher_modalities: Mt.
        axis: see :func:`prototype_divergence`, like the rest.
        absent: ``"mask"`` or ``"zero_row"``.
        temperature: t.
    """
    _, batch, num_classes = counts.shape
    class_axis = axis == "class"
    tile = tiles(num_classes if class_axis else max(channels))
    programs = [
        modalities * batch * triton.cdiv(c if class_axis else num_classes, tile["BLOCK_G"])
        for c in channels
    ]
    shapes = {m: [(m, batch, c) for c in channels] for m in (modalities, teacher_modalities)}
    first = {m: starts_of(sizes_of(shape, num_classes)) for m, shape in shapes.items()}
    table = torch.empty_like(student)
    values = student.new_empty(sum(programs))
    with on_device_of(student):
        _prototype_divergence_fwd_kernel[(sum(programs),)](
            Levels(
                start=starts_of(programs), level=tuple(range(len(channels))), C=tuple(channels),
                student_first=first[modalities], teacher_first=first[teacher_modalities],
            ),
            tuple(rows), student, teacher, counts, pairing, table, values,
            batch, num_classes, temperature,
            PAIRED=pairing is not None, CLASS_AXIS=class_axis,
            MASKED=class_axis and absent == "mask", **tile,
        )  # fmt: skip
    return values.sum(), table


@torch.library.custom_op("fastseg::prototype_divergence", mutates_args=(), device_types=DEVICES)
def _prototype_divergence(
    student: Tensor,
    teacher: Tensor,
    counts: Tensor,
    pairing: Tensor,
    axis: str,
    absent: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    rows = len(teacher)
    return diverge(
        student.contiguous(),
        teacher.contiguous(),
        counts.contiguous()[None],
        pairing.contiguous(),
        student.shape[3:],
        len(student),
        range(rows),
        rows,
        axis,
        absent,
        temperature,
    )


@_prototype_divergence.register_fake
def _(
    student: Tensor,
    teacher: Tensor,
    counts: Tensor,
    pairing: Tensor,
    axis: str,
    absent: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    return student.new_empty(()), student.new_empty(student.shape)


def _divergence_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _divergence_backward(ctx: Any, grad: Tensor, _table: Tensor | None) -> tuple[Any, ...]:
    (table,) = ctx.saved_tensors
    return (table * grad, *[None] * 6)


_prototype_divergence.register_autograd(_divergence_backward, setup_context=_divergence_context)


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
    axis. The gradient with respect to the paired student row is ``t / (B K C) (p - q)``, and has
    itself none; the teacher is constant. On a GPU results repeat bit by bit and nothing waits for
    the device. Float64 and axes of more than 4096 entries take the definition.

    Args:
        student: prototypes ``[Ms, B, K, C]``, any float dtype.
        teacher: prototypes ``[Mt, B, K, C]``.
        counts: ``[B, K]``, pixels of each class; a class is absent where it is zero.
        pairing: ``[B, Mt]`` integers in ``[0, Ms)``, the student row that each teacher modality
            teaches. On a GPU a value outside teaches none.
        axis: ``"class"`` is what the released code uses and the default; ``"channel"`` compares the
            channel profile of each class.
        absent: ``"mask"`` leaves absent classes out of both softmaxes; ``"zero_row"`` keeps their
            zero prototypes in, as the released code does. Over channels the two are the same.
        temperature: t, positive.

    Returns:
        A float32 scalar, at least zero. It is zero, with zero gradient, for a sample without a
        labelled pixel and, over classes with ``"mask"``, for a sample with a single class.

    Raises:
        ValueError: shapes, dtypes or devices do not fit or an option is unknown.

    Source: L_hp of RobustSeg, arXiv:2505.12861v1. The text leaves axis, reduction and absent
    classes open; the mean over K C keeps the published weight of 100 meaningful.
    """
    for name, x in {"student": student, "teacher": teacher}.items():
        if not x.is_floating_point():
            raise ValueError(f"prototypes must be floats, got {x.dtype} of the {name}")
    if len(devices := {x.device for x in (student, teacher, counts, pairing)}) > 1:
        raise ValueError(f"expected all tensors on one device, got {sorted(map(str, devices))}")
    # what the definition rejects, the kernel does not take
    fits = (
        student.ndim == teacher.ndim == 4
        and student.shape[1:] == teacher.shape[1:]
        and counts.shape == student.shape[1:3]
        and pairing.shape == (teacher.shape[1], teacher.shape[0])
        and min(student.numel(), teacher.numel()) > 0
        and not pairing.is_floating_point()
        and max(student.shape[2:]) <= MAX_AXIS
    )
    if not (fits and options_fit(axis, absent, temperature) and runs_on(student)):
        return reference.prototype_divergence(
            student, teacher, counts, pairing, axis=axis, absent=absent, temperature=temperature
        )
    value: Tensor = _prototype_divergence(
        student.float(), teacher.detach().float(), counts, pairing, axis, absent, temperature
    )[0]
    return value


def options_fit(axis: str, absent: str, temperature: float) -> bool:
    """True if the definition knows the axis and the treatment of absent classes, and T > 0."""
    return axis in ("class", "channel") and absent in ("mask", "zero_row") and temperature > 0
