"""Functional entropy and representation regularisation without a second backward pass.

    Ent(f) = E[f log f] - E[f] log E[f]  <=  I(f) / 2,   I(f) = E[ sum_d sigma_d^2 (df/dz_d)^2 / f ]

with f the divergence of a teacher's and a student's softmax, one of them perturbed by Gaussian
noise. The regularisers raise the smallest information I over sides and modalities (``"paper"``),
or compute what the released code computes under this name (``"code"``). Both are one pass over the
features that draws the noise where it needs it and leaves the gradient's directions in memory,
whatever the number of samples: the perturbed copies, their softmaxes and the graph of the first
derivative, 12 GB in the released code at 1024 x 1024, never exist.

Source: functional entropy, arXiv:2010.10802; RobustSeg, arXiv:2505.12861v1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from ..common.switch import HAS_TRITON, runs_on
from ..reference.fisher import InformationAxis
from ..reference.precision import without_autocast
from ..reference.representation import RegulariserForm, check_form, level_shares
from .dispatch import (
    SOFTMAX_DIM,
    fisher_regulariser,
    fisher_served,
    profile_regulariser,
    profile_served,
    seed_tensor,
)

if HAS_TRITON:
    from .fisher import fisher_forward
    from .profile import profile_forward
    from .value import entropy_forward

__all__ = [
    "fisher_regulariser",
    "functional_entropy",
    "profile_regulariser",
    "representation_regularisation",
]


@without_autocast
def functional_entropy(values: Tensor, dim: int = 0) -> Tensor:
    """Functional entropy of non-negative values over equally likely samples.

        Ent = (1/S) sum_s f_s log f_s - f' log f',   f' = (1/S) sum_s f_s
        dEnt / df_s = (1/S) log(f_s / f')

    Args:
        values: f, at least zero, any float dtype; the samples are along ``dim``.
        dim: the axis of the S samples.

    Returns:
        Ent, float32 (float64 of float64 values), in the shape of ``values`` without ``dim``; zero
        where all samples are equal, including all zero. Ent(a f) = a Ent(f).

    Raises:
        ValueError: there is no sample, or the dtype is not a float.
    """
    if not values.is_floating_point():
        raise ValueError(f"expected float values, got {values.dtype}")
    if values.ndim == 0 or not values.shape[dim] or not values.numel() or not runs_on(values):
        return reference.functional_entropy(values, dim)
    return entropy_forward(values, dim)


@without_autocast
def representation_regularisation(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    samples: int = 2,
    seed: int | Tensor = 0,
    noise: Sequence[Tensor] | None = None,
    form: RegulariserForm = "paper",
    normalise: bool = True,
    axis: InformationAxis = "channel",
    sigma_grad: bool = True,
) -> Tensor:
    """Representation regularisation, summed over the levels.

        L_rrm = sum_levels fisher_regulariser              (form="paper")
        L_rrm = sum_levels profile_regulariser             (form="code")
        L_rrm = sum_levels profile_regulariser / (N^2 h)   (form="code-normalised")

    On a GPU all levels share each launch and nothing is copied where the paper form's channels lie
    next to each other in memory. Levels of several M or B, float64 and softmax axes longer than
    4096 are left to the reference.

    Args:
        student_features: per level ``[M, B, C, h, w]``, any float dtype.
        teacher_features: per level the features of the same modalities, same shapes; constant.
        samples: S, the noise samples; the released code uses 10.
        seed: key of the noise, an integer, or an int64 tensor of one element that is read when the
            kernels run; levels differ by themselves.
        noise: per level the noise to use instead, ``[S, M, B, C, h, w]`` for the paper form and
            ``[S, 2, M, B, C, h, w]`` for the code forms.
        form: ``"paper"`` is the information form, ``"code"`` what the released code computes, and
            ``"code-normalised"`` the same with each level divided by its own N^2 h, N = C S h w.
        normalise: make the term independent of resolution, channels and noise scale, so that one
            weight serves every size: each level of the paper form by its own unit, the sum of the
            code form by one number, the sum of N^2 h over the levels, so that its levels keep
            their released proportions. Off, the value is the published one of the chosen form;
            ``"code-normalised"`` has none.
        axis: softmax axis of the paper form; the code forms' is the image height.
        sigma_grad: code forms only: gradient through the noise scale, as released.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes, number of levels, dtypes, devices or options do not fit.

    Source: arXiv:2505.12861v1 and its released code; v2 and the CVPR 2026 version drop the term.
    """
    levels = len(student_features)
    if not levels or any(len(x) != levels for x in (teacher_features, noise) if x is not None):
        raise ValueError(
            f"expected the same number of levels of student, teacher and noise, at least one, got "
            f"{levels}, {len(teacher_features)} and {'none' if noise is None else len(noise)}"
        )
    check_form(form, normalise)
    paper = form == "paper"
    arguments = (student_features, teacher_features, samples, seed, noise)
    served = fisher_served(*arguments, axis) if paper else profile_served(*arguments)
    if not served:
        return reference.representation_regularisation(
            student_features, teacher_features, samples=samples, seed=int(seed), noise=noise,
            form=form, normalise=normalise, axis=axis, sigma_grad=sigma_grad,
        )  # fmt: skip
    options: dict[str, Any] = {
        "samples": samples,
        "seed": seed_tensor(seed, student_features[0]),
        "streams": range(levels),
        "noise": noise,
        "normalise": normalise,
    }
    if paper:
        options |= {"dim": SOFTMAX_DIM[axis], "sigma": None}
        return fisher_forward(student_features, teacher_features, **options).sum()
    shares = [1.0] * levels
    if form == "code" and normalise:
        shares = level_shares(student_features, samples)
    options |= {"shares": shares, "sigma_grad": sigma_grad}
    return profile_forward(student_features, teacher_features, **options).sum()
