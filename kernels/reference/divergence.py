"""Softmax divergence between student and teacher, and its use on logits."""

from __future__ import annotations

import torch
from torch import Tensor

from .closed_form import with_gradient
from .precision import upcast, without_autocast

# exp(-40) is below the rounding of float64 next to probabilities that add up to one
_LEAST_LOG = -40.0


def compare_softmaxes(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of a divergence and its gradient for two distributions, without cancellation.

        ratio = log p - log q,   q,   p - q = q expm1(ratio)

    q is kept above exp(-40), so that the ratio stays below 40 and its exponential finite.

    Args:
        log_p: logarithms of a softmax.
        log_q: logarithms of another softmax, same shape.

    Returns:
        ``(ratio, q, p - q)``, new tensors.
    """
    floored = log_q.clamp(min=_LEAST_LOG)
    ratio = log_p - floored
    q = floored.exp_()
    return ratio, q, torch.expm1(ratio).mul_(q)


def softmax_divergence(
    student: Tensor,
    teacher: Tensor,
    dim: int,
    *,
    temperature: float = 1.0,
    present: Tensor | None = None,
) -> Tensor:
    """Sum of KL(softmax(teacher / t) || softmax(student / t)) along ``dim`` over all groups.

        KL = sum q r = sum q (expm1(-r) + r),   r = log q - log p
        dKL / dstudent = (p - q) / t,           p - q = q expm1(-r)

    The two sums agree because p and q both add up to one, but the terms of the second are never
    negative and do not cancel: for logits that differ by 1e-3 it keeps four digits in float32, the
    first none. For the same reason p - q is not formed by subtraction.

    Args:
        student: logits, any float dtype.
        teacher: logits of the same shape; constant, no gradient flows into them.
        dim: the axis of the distributions.
        temperature: t, positive. The result is not multiplied by t^2.
        present: bool, broadcastable to the logits; entries where it is false take part in neither
            softmax. Every group along ``dim`` needs one that is true.

    Returns:
        A scalar, at least zero.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected logits of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    student = upcast(student)
    with torch.no_grad():
        logits = [student, upcast(teacher)]
        if temperature != 1:
            logits = [x / temperature for x in logits]
        if present is not None:
            logits = [x.masked_fill(~present, -torch.inf) for x in logits]
        ratio, q, difference = compare_softmaxes(*(x.log_softmax(dim) for x in logits))
        if present is not None:  # minus infinity less itself
            absent = ~present
            ratio, q, difference = (x.masked_fill_(absent, 0.0) for x in (ratio, q, difference))
        value = torch.addcmul(difference, q, ratio, value=-1).sum().clamp(min=0)
        gradient = difference if temperature == 1 else difference.div_(temperature)
    return with_gradient(student, value, gradient)


@without_autocast
def logit_distillation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Divergence of the class distributions of every pixel.

        L = t^2 / (B K H W) sum_pixels KL( softmax(teacher / t) || softmax(student / t) )

    The gradient is ``t / (B K H W) (p - q)``; the teacher is constant. Ignored pixels take part, as
    in the released code: the teacher has an opinion about them too. The mean runs over K as well,
    so the published weight of 50 is a weight of 2 on the divergence per pixel for 25 classes.

    Args:
        student_logits: ``[B, K, H, W]``, any float dtype.
        teacher_logits: the same shape.
        temperature: t, positive.

    Returns:
        A scalar, at least zero.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.

    Source: L_KL of arXiv:2505.12861; reduction and direction as in the released code.
    """
    if student_logits.ndim != 4 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"expected two logits [B, K, H, W] of one shape, "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    divergence = softmax_divergence(student_logits, teacher_logits, 1, temperature=temperature)
    return divergence * (temperature**2 / student_logits.numel())
