"""Functional entropy and Fisher information of a divergence under Gaussian perturbation.

For a non-negative function f of a Gaussian variable z ~ N(x, diag(sigma^2)) the logarithmic Sobolev
inequality bounds the functional entropy by half the functional Fisher information,

    Ent(f) = E[f log f] - E[f] log E[f]  <=  I(f) / 2
    I(f) = E[ sum_d sigma_d^2 (df/dz_d)^2 / f ]

Here f is the divergence KL(q || p) of a teacher's and a student's softmax, with either side
perturbed. Every gradient is in closed form: nothing is differentiated twice.

Source: functional entropy regularisation, arXiv:2010.10802; in segmentation, the representation
regularisation of RobustSeg, arXiv:2505.12861v1, whose equations are reconstructed here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .divergence import compare_softmaxes
from .precision import upcast, without_autocast

# keeps A / f finite where the distributions coincide; A <= max(sigma^2) f, so it hides nothing
_GUARD = 1e-12


@without_autocast
def functional_entropy(values: Tensor, dim: int = 0) -> Tensor:
    """Functional entropy of non-negative values over equally likely samples.

        Ent = (1/S) sum_s f_s log f_s - f' log f',   f' = (1/S) sum_s f_s
        dEnt / df_s = (1/S) log(f_s / f')

    computed as ``f' mean(u log u - u + 1)`` with u = f / f', whose terms are never negative.

    Args:
        values: f, at least zero, any float dtype; the samples are along ``dim``.
        dim: the axis of the S samples.

    Returns:
        Ent, in the shape of ``values`` without ``dim``; zero where all samples are equal,
        including all zero. Ent(a f) = a Ent(f).

    Raises:
        ValueError: there is no sample.

    Source: arXiv:2010.10802.
    """
    if values.ndim == 0 or values.shape[dim] == 0:
        raise ValueError(f"expected at least one sample along axis {dim}, got {values.shape}")
    values = upcast(values)
    mean = values.mean(dim, keepdim=True)
    tiny = torch.finfo(values.dtype)
    excess = (values - mean) / mean.clamp(min=tiny.tiny)
    # at f = 0 the derivative is minus infinity; the clamp makes it finite and leaves the value
    log = excess.clamp(min=tiny.eps - 1).log1p()
    return (mean * ((1 + excess) * log - excess)).mean(dim)


def student_information(
    student: Tensor, log_q: Tensor, sigma: Tensor, noise: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Information of the student's logits in one noise draw, and its gradient.

    With z = x + sigma e, p = softmax(z), g = p - q = df/dz and A = sum_d sigma_d^2 g_d^2:

        I = A / f,    dI/dx = 2 p (v - <p, v>) / f - A g / f^2,    v = sigma^2 g

    Args:
        student: x, the clean logits, float32 or float64.
        log_q: logarithm of the teacher's softmax, same shape.
        sigma: noise scale, constant, broadcastable to ``student``.
        noise: e, standard normal, same shape as ``student``.
        dim: the softmax axis.

    Returns:
        ``(I, dI/dx)``: I has size 1 along ``dim``, the gradient the shape of ``student``.
    """
    log_p = torch.addcmul(student, sigma, noise).log_softmax(dim)
    ratio, q, g = compare_softmaxes(log_p, log_q)
    f = torch.addcmul(g, q, ratio, value=-1).sum(dim, keepdim=True).clamp_(min=0) + _GUARD
    variance = sigma.square()
    v = variance * g
    information = (v * g).sum(dim, keepdim=True) / f
    p = q.add_(g)
    centred = v.sub_((p * v).sum(dim, keepdim=True))
    return information, centred.mul_(p).mul_(2).sub_(g.mul_(information)).div_(f)


def teacher_information(
    log_p: Tensor, teacher: Tensor, sigma: Tensor, noise: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Information of the teacher's logits in one noise draw, and its gradient for the student.

    With u = t + sigma e, q = softmax(u), r = log q - log p, df/du = q (r - f) and
    A = sum_d sigma_d^2 q_d^2 (r_d - f)^2:

        I = A / f,    dI/dx = (-2 w + 2 q sum(w)) / f - A (p - q) / f^2,    w = sigma^2 q^2 (r - f)

    Args:
        log_p: logarithm of the student's clean softmax, float32 or float64.
        teacher: t, the clean logits, same shape.
        sigma: noise scale, constant, broadcastable to ``teacher``.
        noise: e, standard normal, same shape as ``teacher``.
        dim: the softmax axis.

    Returns:
        ``(I, dI/dx)`` with x the student's logits: I has size 1 along ``dim``, the gradient the
        shape of ``log_p``.
    """
    log_q = torch.addcmul(teacher, sigma, noise).log_softmax(dim)
    ratio, q, h = compare_softmaxes(log_p, log_q)  # minus r, q, p - q
    divergence = torch.addcmul(h, q, ratio, value=-1).sum(dim, keepdim=True).clamp_(min=0)
    f = divergence + _GUARD
    slope = ratio.add_(divergence).mul_(q).neg_()
    w = sigma.square() * slope
    information = (w * slope).sum(dim, keepdim=True) / f
    w.mul_(q)
    q.mul_(w.sum(dim, keepdim=True)).sub_(w).mul_(2)
    return information, q.sub_(h.mul_(information)).div_(f)
