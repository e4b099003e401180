"""Distances between the features of two networks: within each modality, and between modalities.

Features of a level are ``[M, B, C, h, w]``, the channels best the fastest axis in memory. All sums
run in fp32 whatever the dtype. With marks ``w [M, B]`` modality m of sample b takes part if
``w[m, b]`` is 1; without them all do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Axis = Literal["channel", "height", "map"]
Maps = Literal["features", "code"]
_SMALLEST = 1e-16
"""Squared norms up to this are those of a map without direction."""


def unimodal_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    axis: Axis = "channel",
    marks: Tensor | None = None,
) -> Tensor:
    """Divergence of each modality's features from the teacher's, as distributions along an axis.

        p = softmax(student_i[m, b]),   q = softmax(teacher_i[m, b])    along the axis
        umd = 1/B sum_b sum_i sum_m w[m, b] / (C_i h_i w_i) sum q (log q - log p)

    The divergence is summed as ``q (expm1(-r) + r)`` with ``r = log q - log p``, whose terms are at
    least 0; it keeps its digits where the features are nearly equal. The gradient at the student is
    ``w / (B C h w) (p - q)``; the teacher is constant.

    Args:
        student: levels ``[M, B, C_i, h_i, w_i]``, any float dtype.
        teacher: the same shapes; its modalities in the order of the student's.
        axis: ``channel``: one distribution per pixel; ``height``: per channel and column of pixels,
            as in the released code; ``map``: per channel.
        marks: ``[M, B]``.

    Returns:
        An fp32 scalar, at least zero.

    Raises:
        ValueError: the numbers of levels differ.

    Source: UMD of AnySeg, arXiv:2411.17141; direction, and mean over all elements of a level, as in
    the released code.
    """
    weights = _weights(student[0], marks) / student[0].shape[1]
    total = [
        _Divergence.apply(own, other, weights, axis)  # type: ignore[no-untyped-call]
        for own, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(total).sum()


def cross_modal_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    maps: Maps = "features",
    marks: Tensor | None = None,
) -> Tensor:
    """Difference of the correlations between modalities, for each sample on its own.

        R[m, n] = 1/C sum_c cos(F[m, c], F[n, c])     of maps with h w entries
        cmd = 1/B sum_b sum_i 1/Z_b sum_{m != n} (R_student[m, n] - R_teacher[m, n])^2

    over the modalities that take part, A_b of them. A map of zeros has the cosine 0 with any other,
    and no gradient. One modality alone has no correlations: it adds zero, with zero gradient.

    Args:
        student: levels ``[M, B, C_i, h_i, w_i]``, any float dtype.
        teacher: the same shapes, constant; its modalities in the order of the student's.
        maps: ``features``: F as it is, ``Z = A (A - 1)``. ``code``: F is the log-softmax (student)
            or softmax (teacher) along the height, and Z = A^2, a mean that counts the zeros of the
            diagonal. So the released code compares matrices; equal networks are not at a minimum of
            it. That code also keeps earlier samples' maps in the matrix of a later sample and
            returns the last sample's value alone, which is not reproduced: a sample's loss would
            depend on its place in the batch.
        marks: ``[M, B]``.

    Returns:
        An fp32 scalar, at least zero.

    Raises:
        ValueError: the numbers of levels differ.

    Source: CMD of AnySeg, arXiv:2411.17141. Its printed form is a logarithm of cosines, which may
    be negative; the squares of differences are those of the released code.
    """
    weights = _weights(student[0], marks)
    pairs = weights[:, None] * weights[None]
    pairs = pairs * (1 - torch.eye(len(weights), device=pairs.device))[..., None]
    count = weights.sum(0)
    size = count * (count - 1).clamp(min=1) if maps == "features" else count * count
    total = []
    for own, other in zip(student, teacher, strict=True):
        x, target = _pixels(own), _pixels(other)
        if maps == "code":
            x, target = x.float().log_softmax(2), target.float().softmax(2)
        difference = _correlations(x) - _correlations(target)
        total.append((pairs * difference.square()).sum((0, 1)) / size)
    return torch.stack(total).sum(0).mean()


def _weights(x: Tensor, marks: Tensor | None) -> Tensor:
    """Marks as fp32, or ones."""
    return torch.ones(x.shape[:2], device=x.device) if marks is None else marks.float()


def _pixels(x: Tensor) -> Tensor:
    """``[M, B, C, h, w]`` to ``[M, B, h, w, C]``."""
    return x.movedim(2, -1)


def _correlations(pixels: Tensor) -> Tensor:
    """``[M, M, B]``: mean cosine over the channels of ``pixels [M, B, h, w, C]``."""
    gram: Tensor = _Gram.apply(pixels)  # type: ignore[no-untyped-call]
    squares = gram.diagonal().movedim(-1, 0)
    found = squares > _SMALLEST
    inverse = torch.where(found, squares, 1.0).rsqrt() * found
    return (gram * inverse[:, None] * inverse[None]).mean(-1)


class _Divergence(torch.autograd.Function):
    """``sum w KL / (C h w)`` of one level; keeps the gradient alone, in the student's dtype."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weights: Tensor, axis: Axis) -> Tensor:
        own, other = (_pixels(x).float() for x in (student, teacher))
        if axis == "map":
            own, other = own.flatten(2, 3), other.flatten(2, 3)
        dim = -1 if axis == "channel" else 2
        # every buffer is used again: at most three are alive
        own, other = own.log_softmax(dim), other.log_softmax(dim)
        r = other - own
        q = other.exp_()
        if ctx.needs_input_grad[0]:
            scale = (weights / student[0, 0].numel()).view(*weights.shape, *[1] * (q.ndim - 2))
            gradient = own.exp_().sub_(q).mul_(scale).to(student.dtype)
            shape = student.shape
            ctx.save_for_backward(gradient.view(*shape[:2], *shape[3:], shape[2]).movedim(-1, 2))
        terms = torch.neg(r).expm1_().add_(r).mul_(q)
        values = terms.flatten(2).sum(-1)
        return (weights * values).sum() / student[0, 0].numel()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * gradient.to(saved.dtype), None, None, None


class _Gram(torch.autograd.Function):
    """``[M, M, B, C]`` fp32: inner products of maps, from ``[M, B, h, w, C]``."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(pixels)
        m, b, _, _, c = pixels.shape
        gram = torch.empty((m, m, b, c), dtype=torch.float32, device=pixels.device)
        for n in range(m):
            row = (pixels[n:].float() * pixels[n].float()).sum((2, 3))
            gram[n, n:] = row
            gram[n:, n] = row
        return gram

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        pixels: Tensor
        (pixels,) = ctx.saved_tensors
        factors = (gradient + gradient.transpose(0, 1))[..., None, None, :]
        # [m, n, b, 1, 1, c]
        out: Tensor = factors[:, 0] * pixels[0].float()
        for n in range(1, len(pixels)):
            out.addcmul_(factors[:, n], pixels[n].float())
        return out.to(pixels.dtype)
