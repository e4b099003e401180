"""The released code's form of representation regularisation in one pass over the features.

    z = x + sigma_x e,   u = t + sigma_t e'             a = log_softmax(z), q = softmax(u) over h
    L = (1/N) sum q (log q - a),   Q = sum q^2,   G = sum D^2,   D = log q + 1 - a
    reg = M_r N^2 L sqrt(Q^-2 + G^-2)
    dreg/dz = alpha (softmax(z) - q) + beta (D - softmax(z) sum_h D)

alpha and beta follow from the three sums, so the pass adds up both directions over the noise
samples, and their products with the noise over samples and channels (the path through sigma_x),
without waiting for them. No noise and no perturbed copy is ever in memory. Two small launches then
make the value, alpha and beta, and the slope of each position; backward is elementwise.

Source: as :mod:`fastseg.kernels.reference.profile`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.switch import DEVICES
from .kernel_math import FAST, pick_tile
from .profile_kernels import (
    _profile_finish_kernel,
    _profile_fwd_kernel,
    _profile_slope_kernel,
)
from .rows import describe_rows, fresh, gradient_of, to_rows
from .sigma import position_sigma

CHANNELS_PER_PROGRAM = 4


@torch.library.custom_op("fastseg::profile_regulariser", mutates_args=(), device_types=DEVICES)
def _profile_regulariser(
    student: Tensor,
    teacher: Tensor,
    noise: Tensor | None,
    seed: Tensor,
    stream: int,
    samples: int,
    sigma_grad: bool,
    normalise: bool,
    with_directions: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Value, directions, their weights ``[2, M B]``, mean and slope of each position."""
    with on_device_of(student):
        m, b, channels, height, width = student.shape
        images, positions = m * b, height * width
        sizes = describe_rows(student, 3)
        through_sigma = sigma_grad and with_directions
        x, t = to_rows(student, 3), to_rows(teacher, 3)
        mean, sigma = position_sigma(x, t, samples, sizes)
        tile = pick_tile(width, height, student.dtype)
        grid = (
            triton.cdiv(width, tile.BLOCK_R),
            triton.cdiv(channels, CHANNELS_PER_PROGRAM),
            images,
        )
        directions = fresh(student, *((2, *sizes.shape) if with_directions else (0,)))
        gammas = fresh(student, *((2, grid[1], images, positions) if through_sigma else (0,)))
        sums = fresh(student, 3, images, grid[1] * grid[0])
        _profile_fwd_kernel[grid](
            x, t, sigma, seed if noise is None else noise.contiguous(), seed, directions, gammas,
            sums, stream, samples, channels, width, height,
            GIVEN=noise is not None, TAIL=height != tile.BLOCK_D, DIRECTIONS=with_directions,
            THROUGH_SIGMA=through_sigma, FAST=FAST, CHANNELS=CHANNELS_PER_PROGRAM,
            BLOCK_R=tile.BLOCK_R, BLOCK_D=tile.BLOCK_D, LANE=tile.LANE, num_warps=tile.num_warps,
        )  # fmt: skip
        values = torch.empty(images, dtype=torch.float64, device=student.device)
        weights = fresh(student, 2, images)
        _profile_finish_kernel[(images,)](
            sums, values, weights, sums.shape[2], channels * samples * width, height, b,
            NORMALISE=normalise, BLOCK_N=1024, num_warps=4,
        )  # fmt: skip
        slope = fresh(student, *(mean.shape if through_sigma else (0,)))
        if through_sigma:
            _profile_slope_kernel[(triton.cdiv(positions, 256), images)](
                gammas, weights, sigma, slope, grid[1], positions, samples, channels * samples,
                BLOCK_P=256, num_warps=4,
            )  # fmt: skip
        return values.sum().float(), directions, weights, mean, slope


@_profile_regulariser.register_fake
def _(student: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sigma_grad, _, with_directions = others[-3:]
    m, b, _, height, width = student.shape
    shape = (2, *describe_rows(student, 3).shape) if with_directions else (0,)
    places = (m, b, width, height)
    return (
        fresh(student),
        fresh(student, *shape),
        fresh(student, 2, m * b),
        fresh(student, *places),
        fresh(student, *(places if sigma_grad and with_directions else (0,))),
    )


@torch.library.custom_op("fastseg::profile_gradient", mutates_args=(), device_types=DEVICES)
def _profile_gradient(
    student: Tensor,
    upstream: Tensor,
    directions: Tensor,
    weights: Tensor,
    mean: Tensor,
    slope: Tensor,
) -> Tensor:
    """Gradient of the regulariser with respect to ``student``."""
    with on_device_of(student):
        through_sigma = (mean, slope) if slope.numel() else None
        return gradient_of(student, 3, upstream, directions, weights, through_sigma)


@_profile_gradient.register_fake
def _(
    student: Tensor,
    upstream: Tensor,
    directions: Tensor,
    weights: Tensor,
    mean: Tensor,
    slope: Tensor,
) -> Tensor:
    return torch.empty_like(student)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.inputs = len(inputs)


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * (ctx.inputs - 1)
    if upstream is None:
        return (None, *rest)
    student, *others = ctx.saved_tensors
    return (_profile_gradient(student, upstream, *others), *rest)


_profile_regulariser.register_autograd(_backward, setup_context=_setup_context)


def profile_forward(
    student: Tensor,
    teacher: Tensor,
    *,
    samples: int,
    seed: Tensor,
    stream: int,
    noise: Tensor | None,
    sigma_grad: bool,
    normalise: bool,
) -> Tensor:
    """``reference.profile_regulariser`` of checked arguments, by the kernels."""
    with_directions = torch.is_grad_enabled() and student.requires_grad
    value: Tensor = _profile_regulariser(
        student, teacher.detach(), noise, seed, stream, samples, sigma_grad, normalise,
        with_directions,
    )[0]  # fmt: skip
    return value
