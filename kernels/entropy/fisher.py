"""The information form of representation regularisation in one pass over the features.

    I[student, m] = mean over S, B and softmax groups of A / f   with the student perturbed
    I[teacher, m] = the same with the teacher perturbed
    R = || 1 / I ||_2,   dR / dI_j = -I_j^(-3) / R

The pass adds up both informations and both gradient directions, sum_s d(A / f)/dx, over the noise
samples, which exist in registers only. The directions do not need the informations, so a second
small launch turns the sums into R and the weights of the directions, and backward is elementwise.

Source: as :mod:`fastseg.kernels.reference.fisher`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.switch import DEVICES
from .fisher_kernels import _fisher_finish_kernel, _fisher_fwd_kernel
from .kernel_math import FAST, pick_tile
from .rows import describe_rows, fresh, gradient_of, to_rows, view_rows
from .sigma import channel_sigma

TILES_PER_PROGRAM = 4


@torch.library.custom_op("fastseg::fisher_regulariser", mutates_args=(), device_types=DEVICES)
def _fisher_regulariser(
    student: Tensor,
    teacher: Tensor,
    sigma_student: Tensor | None,
    sigma_teacher: Tensor | None,
    noise: Tensor | None,
    seed: Tensor,
    stream: int,
    samples: int,
    dim: int,
    normalise: bool,
    with_directions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, directions ``[2, M, B, outer, inner, length]`` and their weights ``[2, M]``."""
    with on_device_of(student):
        sizes = describe_rows(student, dim)
        m, b, _, inner, length = sizes.shape
        x, t = to_rows(student, dim), to_rows(teacher, dim)
        if sigma_student is None or sigma_teacher is None:
            spread = channel_sigma(x, t, dim, sizes)
            scales = tuple(spread.view(2, m, 1, -1, 1, 1).unbind())
        else:
            scales = (sigma_student, sigma_teacher)
            squares = [scale.float().square().flatten(1).mean(1).expand(m) for scale in scales]
            spread = torch.stack(squares).sqrt()
        tile = pick_tile(sizes.groups, length, student.dtype)
        programs = triton.cdiv(sizes.groups, tile.BLOCK_R * TILES_PER_PROGRAM)
        directions = fresh(student, *((2, *sizes.shape) if with_directions else (0,)))
        sums = fresh(student, 2, m, b, programs)
        steps = [view_rows(scale.expand(student.shape), dim).stride() for scale in scales]
        _fisher_fwd_kernel[(programs, sizes.images)](
            x, t, *scales, seed if noise is None else noise.contiguous(), seed, directions, sums,
            stream, samples, b, sizes.groups, inner, length, sizes.outer_step, sizes.member_step,
            *steps[0], *steps[1],
            GIVEN=noise is not None, TAIL=length != tile.BLOCK_D, DIRECTIONS=with_directions,
            FAST=FAST, TILES=TILES_PER_PROGRAM, BLOCK_R=tile.BLOCK_R, BLOCK_D=tile.BLOCK_D,
            num_warps=tile.num_warps,
        )  # fmt: skip
        value, weights = fresh(student), fresh(student, 2, m)
        block_j = triton.next_power_of_2(2 * m)
        _fisher_finish_kernel[(1,)](
            sums, spread, value, weights, b * programs, spread[0, 0].numel(), 2 * m, length,
            samples * b * sizes.groups, NORMALISE=normalise, BLOCK_J=block_j,
            BLOCK_N=max(16, 4096 // block_j), num_warps=8,
        )  # fmt: skip
        return value, directions, weights


@_fisher_regulariser.register_fake
def _(student: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    dim, _, with_directions = others[-3:]
    shape = (2, *describe_rows(student, dim).shape) if with_directions else (0,)
    return (
        fresh(student),
        fresh(student, *shape),
        fresh(student, 2, student.shape[0]),
    )


@torch.library.custom_op("fastseg::fisher_gradient", mutates_args=(), device_types=DEVICES)
def _fisher_gradient(
    student: Tensor, upstream: Tensor, directions: Tensor, weights: Tensor, dim: int
) -> Tensor:
    """Gradient of the regulariser with respect to ``student``, whose values it does not read."""
    with on_device_of(student):
        return gradient_of(student, dim, upstream, directions, weights, None)


@_fisher_gradient.register_fake
def _(student: Tensor, upstream: Tensor, directions: Tensor, weights: Tensor, dim: int) -> Tensor:
    return torch.empty_like(student)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.dim, ctx.inputs = inputs[8], len(inputs)


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    student, directions, weights = ctx.saved_tensors
    rest = (None,) * (ctx.inputs - 1)
    if upstream is None:
        return (None, *rest)
    return (_fisher_gradient(student, upstream, directions, weights, ctx.dim), *rest)


_fisher_regulariser.register_autograd(_backward, setup_context=_setup_context)


def fisher_forward(
    student: Tensor,
    teacher: Tensor,
    *,
    samples: int,
    seed: Tensor,
    stream: int,
    noise: Tensor | None,
    dim: int,
    sigma: tuple[Tensor, Tensor] | None,
    normalise: bool,
) -> Tensor:
    """``reference.fisher_regulariser`` of checked arguments, by the kernels."""
    with_directions = torch.is_grad_enabled() and student.requires_grad
    first, second = (None, None) if sigma is None else (scale.detach() for scale in sigma)
    value: Tensor = _fisher_regulariser(
        student, teacher.detach(), first, second, noise, seed, stream, samples, dim, normalise,
        with_directions,
    )[0]  # fmt: skip
    return value
