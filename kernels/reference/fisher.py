"""Representation regularisation, the information form of the papers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .closed_form import check_pair, image_blocks, with_gradient
from .entropy import student_information, teacher_information
from .noise import keyed_noise
from .precision import upcast, without_autocast
from .threads import sum_over_samples

InformationAxis = Literal["channel", "height"]
_DIM = {"channel": 2, "height": 3}


def channel_sigma(features: Tensor) -> Tensor:
    """Noise scale: the spread of each channel of each modality.

    Args:
        features: ``[M, B, C, h, w]``, any float dtype.

    Returns:
        ``[M, 1, C, 1, 1]``, the population standard deviation over samples and pixels (axes B, h
        and w), a constant for autograd. A single pixel has no spread: zero.
    """
    features = upcast(features.detach())
    axes = (1, 3, 4)
    # torch.std takes five times as long over these axes
    centred = features - features.mean(axes, keepdim=True)
    return centred.square_().mean(axes, keepdim=True).sqrt_()


@without_autocast
def fisher_regulariser(
    student: Tensor,
    teacher: Tensor,
    *,
    samples: int = 2,
    seed: int = 0,
    noise: Tensor | None = None,
    axis: InformationAxis = "channel",
    sigma: tuple[Tensor, Tensor] | None = None,
    normalise: bool = False,
) -> Tensor:
    """Inverse information of a teacher-student divergence under perturbation, at one level.

        I[student, m] = mean over S, B and softmax groups of A / f   with the student perturbed
        I[teacher, m] = the same with the teacher perturbed
        R = || 1 / I ||_2   over the 2 M informations
        dR / dI_j = -I_j^(-3) / R

    with f = KL(teacher || student) of one softmax group and A its squared slope in the noise
    metric (:func:`student_information`, :func:`teacher_information`). Minimising R raises the
    smallest information, so that no modality is neglected. The forward pass visits the noise
    samples one by one and adds up values and gradient directions, so memory does not grow with S,
    and the backward pass is one product.

    Args:
        student: ``[M, B, C, h, w]``, any float dtype.
        teacher: features of the same modalities, same shape; constant.
        samples: S, the number of noise samples.
        seed: 64-bit key of the noise; sample s is drawn from (seed, s), one draw for both sides.
        noise: ``[S, M, B, C, h, w]`` standard normal numbers to use instead.
        axis: what a softmax group is: the channels of a pixel, or the rows of an image column
            (``"height"``, the axis of the released code).
        sigma: noise scales of student and teacher, each of five axes that broadcast to the
            features; :func:`channel_sigma` of the features by default. Constant for autograd.
        normalise: divide each side's information by ``2 mean(sigma^2) / D``, its value for nearly
            uniform softmaxes over D entries. R is then of order one at every level, whatever the
            number of channels and the scale of the features.

    Returns:
        A scalar. A side without spread (sigma zero) has no information to raise and adds nothing.

    Raises:
        ValueError: shapes do not fit, ``samples`` is not positive or ``axis`` is unknown.

    Source: reconstruction of the regulariser of arXiv:2505.12861v1, whose equations are not
    published in its code; inequality and inverse-norm form ('max_ent') from arXiv:2010.10802.
    """
    check_pair(student, teacher, samples, noise, sides=())
    if axis not in _DIM:
        raise ValueError(f'axis must be "channel" or "height", got {axis!r}')
    dim = _DIM[axis]
    student, teacher = upcast(student), upcast(teacher).detach()
    scales = (channel_sigma(student), channel_sigma(teacher)) if sigma is None else sigma
    if any(scale.ndim != 5 for scale in scales):
        raise ValueError(
            f"expected noise scales of five axes that broadcast to [M, B, C, h, w], "
            f"got {[tuple(scale.shape) for scale in scales]}"
        )
    with torch.no_grad():
        value, gradient = _inverse_information(
            student, teacher, scales, samples, seed, noise, dim, normalise
        )
    return with_gradient(student, value, gradient)


def _inverse_information(
    student: Tensor,
    teacher: Tensor,
    scales: tuple[Tensor, Tensor],
    samples: int,
    seed: int,
    noise: Tensor | None,
    dim: int,
    normalise: bool,
) -> tuple[Tensor, Tensor]:
    """Value and gradient of :func:`fisher_regulariser`."""
    modalities, batch = student.shape[:2]
    # the noise is drawn in this order of memory: mixed orders cost more than the two copies
    x, t = (features.contiguous().flatten(0, 1) for features in (student, teacher))
    sigma_x, sigma_t = (
        scale.expand(modalities, batch, *scale.shape[2:]).flatten(0, 1) for scale in scales
    )
    dim -= 1
    log_p, log_q = x.log_softmax(dim), t.log_softmax(dim)
    drawn = student.shape, student

    def work(chosen: Iterable[int]) -> tuple[Tensor, ...]:
        information = x.new_zeros((2, len(x)))
        directions = (torch.zeros_like(x), torch.zeros_like(x))
        buffer = torch.empty(student.shape, device=x.device) if noise is None else None
        for s in chosen:
            draw = noise[s] if noise is not None else keyed_noise(*drawn, seed, s, out=buffer)
            for block in image_blocks(x):
                e, own, other = draw.flatten(0, 1)[block], x[block], t[block]
                value, slope = student_information(own, log_q[block], sigma_x[block], e, dim)
                information[0, block] += value.flatten(1).mean(1)
                directions[0][block] += slope
                value, slope = teacher_information(log_p[block], other, sigma_t[block], e, dim)
                information[1, block] += value.flatten(1).mean(1)
                directions[1][block] += slope
        return information, *directions

    information, *directions = sum_over_samples(work, samples, student)
    information = information.view(2, modalities, batch).mean(2) / samples
    unit = torch.ones_like(information)
    if normalise:
        variance = [scale.square().flatten(1).mean(1).expand(modalities) for scale in scales]
        unit = torch.stack(variance) * (2 / x.shape[dim])
    # NaN is not zero: it stays and is seen
    inverse = (unit / information).where(information != 0, 0.0)
    value = inverse.norm()
    # dR/dI = -inverse^3 / (R unit), and each I is a mean over the samples and the groups
    groups = student[0].numel() // x.shape[dim]
    weight = inverse**3 / (value * unit * samples * groups)
    weight = -weight.where(inverse != 0, 0.0).view(2, -1, 1, 1, 1, 1)
    first, second = (direction.view(student.shape) for direction in directions)
    return value, first.mul_(weight[0]).addcmul_(second, weight[1])
