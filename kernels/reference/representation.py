"""Representation regularisation of all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .fisher import InformationAxis, fisher_regulariser
from .noise import fold_key
from .profile import profile_regulariser

RegulariserForm = Literal["paper", "code", "code-normalised"]


def representation_regularisation(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    samples: int = 2,
    seed: int = 0,
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

    The forms need other weights. Norms of the gradient at the student's features, of weight 1, on a
    batch of the demo (MiT-nano, 128 pixels, 4 modalities, 8 samples, both networks after 80 steps):

        term               levels 1 to 4                       all
        OHEM               2.4e-3  2.8e-3  4.7e-3  6.1e-3   8.5e-3
        logit KL           2.0e-5  2.7e-5  4.4e-5  5.1e-5   7.5e-5
        HPDM, paper        3.7e-4  3.9e-4  4.2e-4  2.6e-4   7.3e-4
        paper              2.9e-3  5.6e-3  1.5e-2  1.8e-2   2.5e-2
        code               8.1e-5  3.0e-5  1.2e-5  4.1e-6   8.8e-5
        code-normalised    9.3e-5  2.8e-4  8.7e-4  2.4e-3   2.6e-3

    Args:
        student_features: per level ``[M, B, C, h, w]``, any float dtype.
        teacher_features: per level the features of the same modalities, same shapes; constant.
        samples: S, the noise samples; the released code uses 10.
        seed: key of the noise, such as ``fold_key(run seed, step)``; levels differ by themselves.
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
        ValueError: shapes, number of levels or options do not fit.

    Source: arXiv:2505.12861v1 and its released code; v2 and the CVPR 2026 version drop the term.
    """
    if (
        not student_features
        or len(student_features) != len(teacher_features)
        or (noise is not None and len(noise) != len(student_features))
    ):
        raise ValueError(
            f"expected the same number of levels of student, teacher and noise, at least one, got "
            f"{len(student_features)}, {len(teacher_features)} and "
            f"{'none' if noise is None else len(noise)}"
        )
    check_form(form, normalise)
    terms = []
    for level, (student, teacher) in enumerate(
        zip(student_features, teacher_features, strict=True)
    ):
        given = None if noise is None else noise[level]
        key = fold_key(seed, level)
        if form == "paper":
            term = fisher_regulariser(
                student,
                teacher,
                samples=samples,
                seed=key,
                noise=given,
                axis=axis,
                normalise=normalise,
            )
        else:
            term = profile_regulariser(
                student,
                teacher,
                samples=samples,
                seed=key,
                noise=given,
                sigma_grad=sigma_grad,
                normalise=normalise,
            )
        terms.append(term)
    return add_levels(terms, student_features, samples, form, normalise)


def check_form(form: RegulariserForm, normalise: bool) -> None:
    """Refuse a form that does not exist, or that has no value without normalisation.

    Raises:
        ValueError: naming the forms there are.
    """
    if form not in get_args(RegulariserForm):
        known = ", ".join(map(repr, get_args(RegulariserForm)))
        raise ValueError(f"form must be one of {known}, got {form!r}")
    if form == "code-normalised" and not normalise:
        raise ValueError("'code-normalised' is always normalised; the released value is 'code'")


def add_levels(
    terms: Sequence[Tensor],
    features: Sequence[Tensor],
    samples: int,
    form: RegulariserForm,
    normalise: bool,
) -> Tensor:
    """The sum over the levels of a regulariser, each times its :func:`level_shares`.

    Args:
        terms: scalar of each level, normalised or not.
        features: per level ``[M, B, C, h, w]``.
        samples: S.
        form: of the regulariser.
        normalise: whether the terms are divided by anything.
    """
    if form == "code" and normalise:
        shares = level_shares(features, samples)
        terms = [term * share for term, share in zip(terms, shares, strict=True)]
    return torch.stack(list(terms)).sum()


def level_shares(features: Sequence[Tensor], samples: int) -> list[float]:
    """Shares of the levels in the code form's sum of normalised levels.

    The released code adds up values that each carry their level's N^2 h. To divide that sum by the
    sum of all N^2 h, a level divided by its own is multiplied with its share.

    Args:
        features: per level ``[M, B, C, h, w]``.
        samples: S.
    """
    sizes = [(samples * x[0, 0].numel()) ** 2 * x.shape[3] for x in features]
    return [size / sum(sizes) for size in sizes]
