"""Representation regularisation of all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .fisher import InformationAxis, fisher_regulariser
from .noise import fold_key
from .profile import profile_regulariser


def representation_regularisation(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    samples: int = 2,
    seed: int = 0,
    noise: Sequence[Tensor] | None = None,
    form: Literal["paper", "code"] = "paper",
    normalise: bool = True,
    axis: InformationAxis = "channel",
    sigma_grad: bool = True,
) -> Tensor:
    """Representation regularisation, summed over the levels.

        L_rrm = sum_levels fisher_regulariser     (form="paper")
        L_rrm = sum_levels profile_regulariser    (form="code")

    Args:
        student_features: per level ``[M, B, C, h, w]``, any float dtype.
        teacher_features: per level the features of the same modalities, same shapes; constant.
        samples: S, the noise samples; the released code uses 10.
        seed: key of the noise, such as ``fold_key(run seed, step)``; levels differ by themselves.
        noise: per level the noise to use instead, ``[S, M, B, C, h, w]`` for the paper form and
            ``[S, 2, M, B, C, h, w]`` for the code form.
        form: ``"paper"`` is the information form, ``"code"`` what the released code computes.
        normalise: make the term independent of resolution, channels and noise scale, so that one
            weight serves every size. Off, the value is the published one of the chosen form.
        axis: softmax axis of the paper form; the code form's is the image height.
        sigma_grad: code form only: gradient through the noise scale, as released.

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
    if form not in ("paper", "code"):
        raise ValueError(f'form must be "paper" or "code", got {form!r}')
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
    return torch.stack(terms).sum()
