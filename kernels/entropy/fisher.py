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

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.feature_maps import starts_of
from ..common.switch import DEVICES
from .fisher_kernels import Levels, Sums, _fisher_finish_kernel, _fisher_fwd_kernel
from .gradient import gradients_of
from .kernel_math import FAST, WARP_TILE, pick_tiles
from .rows import Rows, describe_rows, fresh, group_step, sections_of, to_rows, view_rows
from .sigma import channel_sigma

TILES_PER_PROGRAM = 4
Scales = list[tuple[Tensor, tuple[int, ...]]]


@torch.library.custom_op("fastseg::fisher_regulariser", mutates_args=(), device_types=DEVICES)
def _fisher_regulariser(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    sigma_student: Sequence[Tensor],
    sigma_teacher: Sequence[Tensor],
    noise: Sequence[Tensor],
    seed: Tensor,
    streams: Sequence[int],
    samples: int,
    dim: int,
    normalise: bool,
    with_directions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value of each level, directions and their weights ``[levels, 2, M]``.

    The directions are flat, ``[2, M, B, outer, inner, length]`` of every level in a row.
    """
    like = student[0]
    with on_device_of(like):
        sizes = [describe_rows(x, dim) for x in student]
        m, b = sizes[0].shape[:2]
        rows = to_rows([*student, *teacher], dim)
        x, t = rows[: len(student)], rows[len(student) :]
        if sigma_student:
            spread, spreads = _spread_of([*sigma_student, *sigma_teacher], m), [1] * len(student)
            own, other = (
                [_scale(y, like.shape, dim) for y, like in zip(side, student, strict=True)]
                for side in (sigma_student, sigma_teacher)
            )
        else:
            spread = channel_sigma(x, t, dim, sizes)
            spreads = [x.shape[2] for x in student]
            own, other = _channel_scales(spread, m, spreads, dim)
        # what float32 takes more registers for spills where a tile is full
        most = WARP_TILE // 2 if like.dtype == torch.float32 else WARP_TILE
        lengths = [(size.groups, size.shape[4]) for size in sizes]
        tiles, warps = pick_tiles(lengths, like.dtype, most)
        programs = [
            triton.cdiv(size.groups, tile.BLOCK_R * TILES_PER_PROGRAM)
            for size, tile in zip(sizes, tiles, strict=True)
        ]
        elements = [size.elements for size in sizes]
        directions = fresh(like, 2 * m * b * sum(elements) if with_directions else 0)
        sums = fresh(like, 2 * m * b * sum(programs))
        draws = tuple(draw.contiguous() for draw in noise) or (seed,) * len(student)
        _fisher_fwd_kernel[(sum(programs), m * b)](
            Levels(
                start=sections_of(programs), x_ptr=tuple(x), x_step=tuple(map(_steps, x)),
                t_ptr=tuple(t), t_step=tuple(map(_steps, t)),
                sigma_x_ptr=tuple(y for y, _ in own), sigma_x_step=tuple(y for _, y in own),
                sigma_t_ptr=tuple(y for y, _ in other), sigma_t_step=tuple(y for _, y in other),
                noise_ptr=draws, stream=tuple(streams), R=tuple(size.groups for size in sizes),
                INNER=tuple(size.shape[3] for size in sizes),
                D=tuple(size.shape[4] for size in sizes),
                outer_step=tuple(size.outer_step for size in sizes),
                member_step=tuple(size.member_step for size in sizes),
                elements_before=starts_of(elements),
            ),
            seed, directions, sums, samples, b, GIVEN=bool(noise), DIRECTIONS=with_directions,
            FAST=FAST, LOOPS=TILES_PER_PROGRAM,
            TILES=tuple((tile.BLOCK_R, tile.BLOCK_D, tile.TAIL) for tile in tiles),
            num_warps=warps,
        )  # fmt: skip
        values, weights = fresh(like, len(student)), fresh(like, len(student), 2, m)
        block_j = triton.next_power_of_2(2 * m)
        _fisher_finish_kernel[(len(student),)](
            Sums(
                start=tuple(range(len(student))), programs=tuple(programs),
                programs_before=starts_of(programs), spreads=tuple(spreads),
                spreads_before=starts_of(spreads), length=tuple(size.shape[4] for size in sizes),
                divisor=tuple(samples * b * size.groups for size in sizes),
            ),
            sums, spread, values, weights, 2 * m, b, NORMALISE=normalise, BLOCK_J=block_j,
            BLOCK_N=max(16, 4096 // block_j), num_warps=8,
        )  # fmt: skip
        return values, directions, weights


def _steps(view: Tensor) -> tuple[int | None, ...]:
    """Strides of rows: modality, sample, group."""
    return (*view.stride()[:2], group_step(view))


def _scale(scale: Tensor, shape: torch.Size, dim: int) -> tuple[Tensor, tuple[int, ...]]:
    """Given noise scales and their strides as rows."""
    return scale, view_rows(scale.expand(shape), dim).stride()


def _spread_of(scales: Sequence[Tensor], modalities: int) -> Tensor:
    """Root mean square of given noise scales, ``[2, M]`` of every level in a row."""
    squares = [y.float().square().flatten(1).mean(1).expand(modalities) for y in scales]
    own, other = squares[: len(squares) // 2], squares[len(squares) // 2 :]
    return torch.stack([torch.stack(pair) for pair in zip(own, other, strict=True)]).sqrt()


def _channel_scales(
    spread: Tensor, modalities: int, channels: Sequence[int], dim: int
) -> tuple[Scales, Scales]:
    """The scales of both sides of each level and their strides as rows."""
    sides = spread.split_with_sizes([modalities * c for c in channels for _ in range(2)])
    steps = [(c, 0, 0, 0, 1) if dim == 2 else (c, 0, 1, 0, 0) for c in channels]
    return (
        list(zip(sides[::2], steps, strict=True)),
        list(zip(sides[1::2], steps, strict=True)),
    )


@_fisher_regulariser.register_fake
def _(student: Sequence[Tensor], *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    dim, _, with_directions = others[-3:]
    sizes: list[Rows] = [describe_rows(x, dim) for x in student]
    elements = sum(2 * size.images * size.elements for size in sizes)
    return (
        fresh(student[0], len(student)),
        fresh(student[0], elements if with_directions else 0),
        fresh(student[0], len(student), 2, len(student[0])),
    )


@torch.library.custom_op("fastseg::fisher_gradient", mutates_args=(), device_types=DEVICES)
def _fisher_gradient(
    student: Sequence[Tensor], upstream: Tensor, directions: Tensor, weights: Tensor, dim: int
) -> list[Tensor]:
    """Gradients of the features, whose values it does not read; ``upstream`` is ``[levels]``."""
    with on_device_of(upstream):
        return gradients_of(student, dim, upstream, directions, weights, None)


@_fisher_gradient.register_fake
def _(
    student: Sequence[Tensor], upstream: Tensor, directions: Tensor, weights: Tensor, dim: int
) -> list[Tensor]:
    return [torch.empty_like(x) for x in student]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    student, ctx.dim = inputs[0], inputs[8]
    ctx.save_for_backward(*output[1:], *student)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.lengths = [len(x) for x in inputs[:5]]


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    directions, weights, *student = ctx.saved_tensors
    nothing: list[Any] = [[None] * length for length in ctx.lengths]
    if upstream is not None:
        nothing[0] = _fisher_gradient(student, upstream, directions, weights, ctx.dim)
    return (*nothing, *[None] * 6)


_fisher_regulariser.register_autograd(_backward, setup_context=_setup_context)


def fisher_forward(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    samples: int,
    seed: Tensor,
    streams: Sequence[int],
    noise: Sequence[Tensor] | None,
    dim: int,
    sigma: tuple[Tensor, Tensor] | None,
    normalise: bool,
) -> Tensor:
    """``reference.fisher_regulariser`` of every level, by the kernels; checked arguments.

    Args:
        student: features of every level, of one M and B.
        teacher: likewise.
        samples: S.
        seed: one int64, the key of the noise.
        streams: number of each level, part of the key.
        noise: of every level, or None.
        dim: the softmax axis.
        sigma: noise scales of both sides of the only level, or None.
        normalise: see the reference.

    Returns:
        ``[levels]`` float32.
    """
    with_directions = torch.is_grad_enabled() and any(x.requires_grad for x in student)
    own, other = ([], []) if sigma is None else ([scale.detach()] for scale in sigma)
    values: Tensor = _fisher_regulariser(
        list(student), [x.detach() for x in teacher], own, other, list(noise or ()), seed,
        list(streams), samples, dim, normalise, with_directions,
    )[0]  # fmt: skip
    return values
