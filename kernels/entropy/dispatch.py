"""The regularisers of one level, and which levels the kernels serve: the same errors for both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..common.switch import HAS_TRITON, runs_on
from ..reference.closed_form import check_pair
from ..reference.fisher import InformationAxis
from ..reference.precision import without_autocast

if HAS_TRITON:
    from .fisher import fisher_forward
    from .kernel_math import LONGEST
    from .profile import profile_forward
else:
    LONGEST = 0

SOFTMAX_DIM = {"channel": 2, "height": 3}


@without_autocast
def fisher_regulariser(
    student: Tensor,
    teacher: Tensor,
    *,
    samples: int = 2,
    seed: int | Tensor = 0,
    noise: Tensor | None = None,
    axis: InformationAxis = "channel",
    sigma: tuple[Tensor, Tensor] | None = None,
    normalise: bool = False,
) -> Tensor:
    """Inverse information of a teacher-student divergence under perturbation, at one level.

    ``R = || 1 / I ||_2`` over the informations of both sides of all modalities; the definition is
    in ``reference.fisher_regulariser``.

    Args:
        student: ``[M, B, C, h, w]``, float32, float16 or bfloat16, any strides; float64 and softmax
            axes longer than 4096 are left to the reference.
        teacher: features of the same modalities, same shape; constant.
        samples: S, the number of noise samples.
        seed: 64-bit key of the noise. An int64 tensor of one element on the features' device is
            read when the kernel runs: a replayed CUDA graph draws new noise once it has changed.
            The numbers are not the reference's, which has another generator.
        noise: ``[S, M, B, C, h, w]`` standard normal numbers to use instead.
        axis: ``"channel"`` or ``"height"``, the softmax axis.
        sigma: noise scales of student and teacher, each of five axes that broadcast to the
            features; the spread of each channel by default. Constant for autograd.
        normalise: divide each side's information by ``2 mean(sigma^2) / D``.

    Returns:
        A float32 scalar. A side without spread (sigma zero) adds nothing.

    Raises:
        ValueError: shapes, dtypes, devices or options do not fit.
    """
    given = None if noise is None else [noise]
    if not fisher_served([student], [teacher], samples, seed, given, axis, sigma):
        return reference.fisher_regulariser(
            student, teacher, samples=samples, seed=int(seed), noise=noise, axis=axis,
            sigma=sigma, normalise=normalise,
        )  # fmt: skip
    sizes = [tuple(scale.shape) for scale in sigma or ()]
    if any(
        len(size) != 5 or any(a not in (1, b) for a, b in zip(size, student.shape, strict=True))
        for size in sizes
    ):
        raise ValueError(
            f"expected noise scales of five axes that broadcast to [M, B, C, h, w], got {sizes}"
        )
    values = fisher_forward(
        [student], [teacher], samples=samples, seed=seed_tensor(seed, student), streams=[0],
        noise=given, dim=SOFTMAX_DIM[axis], sigma=sigma, normalise=normalise,
    )  # fmt: skip
    return values[0]


@without_autocast
def profile_regulariser(
    student: Tensor,
    teacher: Tensor,
    *,
    samples: int = 10,
    seed: int | Tensor = 0,
    noise: Tensor | None = None,
    sigma_grad: bool = True,
    normalise: bool = False,
) -> Tensor:
    """Representation regularisation of one level, as the released code computes it.

    ``M_r N^2 L sqrt(Q^-2 + G^-2)`` of noisy height profiles, summed over the modalities and divided
    by B; the definition is in ``reference.profile_regulariser``.

    Args:
        student: ``[M, B, C, h, w]``, float32, float16 or bfloat16, any strides; float64 and more
            than 4096 rows are left to the reference.
        teacher: features of the same modalities, same shape; constant.
        samples: S; the released code uses 10.
        seed: as for :func:`fisher_regulariser`.
        noise: ``[S, 2, M, B, C, h, w]`` standard normal numbers to use instead: the student's, then
            the teacher's.
        sigma_grad: let the gradient flow through the student's noise scale, as released.
        normalise: divide by N^2 h, which makes the value of one size at every resolution.

    Returns:
        A float32 scalar, at least zero.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or C S is 1, which has no standard
            deviation.
    """
    given = None if noise is None else [noise]
    if not profile_served([student], [teacher], samples, seed, given):
        return reference.profile_regulariser(
            student, teacher, samples=samples, seed=int(seed), noise=noise, sigma_grad=sigma_grad,
            normalise=normalise,
        )  # fmt: skip
    values = profile_forward(
        [student], [teacher], samples=samples, seed=seed_tensor(seed, student), streams=[0],
        shares=[1.0], noise=given, sigma_grad=sigma_grad, normalise=normalise,
    )  # fmt: skip
    return values[0]


def fisher_served(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    samples: int,
    seed: int | Tensor,
    noise: Sequence[Tensor] | None,
    axis: str,
    sigma: tuple[Tensor, Tensor] | None = None,
) -> bool:
    """True if the kernels take these levels; never if the definition rejects them.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    for i, (x, t) in enumerate(zip(student, teacher, strict=True)):
        given = None if noise is None else noise[i]
        check_pair(x, t, samples, given, sides=())
        _check_tensors(x, t, given, seed, *(sigma or ()))
    dim = SOFTMAX_DIM.get(axis)  # a wrong axis is the reference's to name
    return dim is not None and _together(student) and all(x.shape[dim] <= LONGEST for x in student)


def profile_served(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    samples: int,
    seed: int | Tensor,
    noise: Sequence[Tensor] | None,
) -> bool:
    """As :func:`fisher_served`."""
    for i, (x, t) in enumerate(zip(student, teacher, strict=True)):
        given = None if noise is None else noise[i]
        check_pair(x, t, samples, given, sides=(2,))
        _check_tensors(x, t, given, seed)
    # no standard deviation is the reference's to name
    fitting = all(x.shape[2] * samples > 1 and x.shape[3] <= LONGEST for x in student)
    return fitting and _together(student)


def _together(student: Sequence[Tensor]) -> bool:
    """True if one launch serves all of them."""
    one_grid = len({x.shape[:2] for x in student}) == 1
    return one_grid and all(runs_on(x) for x in student)


def _check_tensors(student: Tensor, teacher: Tensor, *others: Tensor | int | None) -> None:
    """Reject integers as features and tensors on several devices."""
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ValueError(f"expected float features, got {student.dtype} and {teacher.dtype}")
    tensors = [student, teacher, *(x for x in others if isinstance(x, Tensor))]
    if len(devices := {str(x.device) for x in tensors}) > 1:
        raise ValueError(f"expected all tensors on one device, got {sorted(devices)}")


def seed_tensor(seed: int | Tensor, like: Tensor) -> Tensor:
    """One int64 in device memory."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"expected a seed of one int64, got {seed.dtype} {tuple(seed.shape)}")
        return seed
    signed = (seed + 2**63) % 2**64 - 2**63
    return torch.full((1,), signed, dtype=torch.int64, device=like.device)
