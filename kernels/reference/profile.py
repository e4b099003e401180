"""Representation regularisation, the form of the released code."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .closed_form import check_pair, image_blocks, with_gradient
from .noise import keyed_noise
from .precision import upcast, without_autocast
from .threads import sum_over_samples


@without_autocast
def profile_regulariser(
    student: Tensor,
    teacher: Tensor,
    *,
    samples: int = 10,
    seed: int = 0,
    noise: Tensor | None = None,
    sigma_grad: bool = True,
    normalise: bool = False,
) -> Tensor:
    """Representation regularisation of one level, as the released code computes it.

    For one sample and modality, with S noisy copies of every channel, N = C S h w elements and
    M_r = C S w softmax rows:

        z = x + sigma_x e,   u = t + sigma_t e'         sigma[r, c] = std over channels and copies
        a = log_softmax(z),  q = softmax(u)             over the image height
        L = (1/N) sum q (log q - a),   Q = sum q^2,   G = sum D^2,   D = log q + 1 - a
        reg = M_r N^2 L sqrt(Q^-2 + G^-2)

    summed over the modalities and divided by B. The published code reaches ``reg`` by
    differentiating L with respect to a and q with a graph and differentiating once more; this is
    the closed form of the same numbers:

        dreg/dz = g - softmax(z) sum_height(g),   g = M_r N^2 (2 L D / (R G^3) - R q / N)

    with R = sqrt(Q^-2 + G^-2), plus the path through sigma_x. Up to a factor this is the mean
    divergence of noisy height profiles, not an information bound: the slope is taken after the
    softmax, and neither the covariance of the noise nor the factor 1/2 appears.

    Args:
        student: x, ``[M, B, C, h, w]``, any float dtype.
        teacher: t, features of the same modalities, same shape; constant.
        samples: S; the released code uses 10.
        seed: 64-bit key of the noise; sample s is drawn from (seed, s).
        noise: ``[S, 2, M, B, C, h, w]`` standard normal numbers to use instead: e, then e'.
        sigma_grad: let the gradient flow through sigma_x, as the released code does.
        normalise: divide by N^2 h, which makes the value ``L sqrt(1 + (Q/G)^2) / kappa`` with
            kappa = h^2 mean(q^2): of one size at every resolution. A published weight w becomes
            w N^2 h.

    Returns:
        A scalar, at least zero. Without ``normalise`` it is 1e11 to 1e14 at usual sizes; the
        released scripts weigh it with 1e-4 down to 1e-14.

    Raises:
        ValueError: shapes do not fit, or C S is 1, which has no standard deviation.

    Source: ``mmkd/RUMD.py`` and ``mmkd/regularization.py`` of github.com/RobustSeg/RobustSeg at
    ea9add7; the factor lambda and the script's weight are not included.
    """
    check_pair(student, teacher, samples, noise, sides=(2,))
    if student.shape[2] * samples < 2:
        raise ValueError("one channel and one sample have no standard deviation; raise samples")
    student, teacher = upcast(student), upcast(teacher).detach()
    with torch.no_grad():
        value, gradient = _profile_value_and_gradient(
            student, teacher, samples, seed, noise, sigma_grad, normalise
        )
    return with_gradient(student, value, gradient)


def _position_sigma(x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Deviation from the channel mean, and the unbiased std over channels and their S copies."""
    centred = x - x.mean(1, keepdim=True)
    rows = x.shape[1] * samples
    variance = centred.square().sum(1, keepdim=True) * (samples / (rows - 1))
    return centred, variance.sqrt()


def _profile_value_and_gradient(
    student: Tensor,
    teacher: Tensor,
    samples: int,
    seed: int,
    noise: Tensor | None,
    sigma_grad: bool,
    normalise: bool,
) -> tuple[Tensor, Tensor]:
    """Value and gradient of :func:`profile_regulariser`.

    dreg/dz is ``alpha (p - q) + beta (D - p sum_height(D))`` with scalars known after the last
    sample only, so both directions, and their products with the noise, are added up.
    """
    batch, channels, height, width = student.shape[1:]
    # the noise is drawn in this order of memory: mixed orders cost more than the two copies
    x, t = (features.contiguous().flatten(0, 1) for features in (student, teacher))
    centred, sigma = _position_sigma(x, samples)
    _, teacher_sigma = _position_sigma(t, samples)
    drawn = (2, *student.shape), student

    def work(chosen: Iterable[int]) -> tuple[Tensor, ...]:
        sums = x.new_zeros((3, len(x)), dtype=torch.float64)  # N L, Q, G
        directions = (torch.zeros_like(x), torch.zeros_like(x))
        gammas = (torch.zeros_like(sigma), torch.zeros_like(sigma))  # through sigma
        buffer = torch.empty((2, *student.shape), device=x.device) if noise is None else None
        for s in chosen:
            draw = noise[s] if noise is not None else keyed_noise(*drawn, seed, s, out=buffer)
            for block in image_blocks(x):
                e, e_teacher = draw.flatten(1, 2)[:, block]
                log_p = torch.addcmul(x[block], sigma[block], e).log_softmax(2)
                log_q = torch.addcmul(t[block], teacher_sigma[block], e_teacher).log_softmax(2)
                # noise on both sides keeps p and q apart: no form without cancellation is needed
                q = log_q.exp()
                d = log_q.sub_(log_p)
                p = log_p.exp_()
                parts = [torch.linalg.vecdot(q.flatten(1), other.flatten(1)) for other in (d, q)]
                d.add_(1)
                parts.append(torch.linalg.vecdot(d.flatten(1), d.flatten(1)))
                sums[:, block] += torch.stack(parts)
                second = torch.addcmul(d, p, d.sum(2, keepdim=True), value=-1)
                steps = (p.sub_(q), second)
                for step, direction, gamma in zip(steps, directions, gammas, strict=True):
                    direction[block] += step
                    if sigma_grad:
                        gamma[block] += step.mul_(e).sum(1, keepdim=True)
        return sums, *directions, *gammas

    sums, *through = sum_over_samples(work, samples, student)
    directions, gammas = through[:2], through[2:]
    rows = channels * samples * width
    size = rows * height
    mean_divergence, q_sum, g_sum = sums[0] / size, sums[1], sums[2]
    root = (q_sum**-2 + g_sum**-2).sqrt()
    scale = (rows / height if normalise else float(rows) * float(size) ** 2) / batch
    value = scale * mean_divergence * root
    factors = (scale * root / size, scale * 2 * mean_divergence / (root * g_sum**3))
    gradient = torch.zeros_like(x)
    for factor, direction, gamma in zip(factors, directions, gammas, strict=True):
        factor = factor.to(x.dtype)[:, None, None, None]
        gradient.addcmul_(factor, direction)
        if sigma_grad:
            # dsigma/dx = S (x - mean) / ((C S - 1) sigma); zero where the channels agree
            spread = (channels * samples - 1) * sigma
            slope = (gamma / spread).where(sigma != 0, 0.0)
            gradient.addcmul_(centred, factor * samples * slope)
    return value.sum().to(x.dtype), gradient.view(student.shape)
