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

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.feature_maps import starts_of
from ..common.switch import DEVICES
from .gradient import gradients_of
from .kernel_math import FAST, pick_tiles
from .positions import position_sigma
from .profile_kernels import (
    Levels,
    Slopes,
    Sums,
    _profile_finish_kernel,
    _profile_fwd_kernel,
    _profile_slope_kernel,
)
from .rows import describe_rows, fresh, sections_of, to_rows

CHANNELS_PER_PROGRAM = 4


@torch.library.custom_op("fastseg::profile_regulariser", mutates_args=(), device_types=DEVICES)
def _profile_regulariser(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    noise: Sequence[Tensor],
    seed: Tensor,
    streams: Sequence[int],
    shares: Sequence[float],
    samples: int,
    sigma_grad: bool,
    normalise: bool,
    with_directions: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Value of each level, directions, their weights ``[levels, 2, M B]``, means and slopes.

    Directions, and mean and slope of each position, are flat, one level after the other.
    """
    like = student[0]
    with on_device_of(like):
        sizes = [describe_rows(x, 3) for x in student]
        b, images = sizes[0].shape[1], sizes[0].images
        channels, widths, heights = (
            tuple(size.shape[axis] for size in sizes) for axis in (2, 3, 4)
        )
        through_sigma = sigma_grad and with_directions
        rows = to_rows([*student, *teacher], 3)
        x, t = rows[: len(student)], rows[len(student) :]
        means, sigma = position_sigma(x, t, samples, sizes)
        tiles, warps = pick_tiles(list(zip(widths, heights, strict=True)), like.dtype)
        parts = [triton.cdiv(c, CHANNELS_PER_PROGRAM) for c in channels]
        programs = [
            n * triton.cdiv(width, tile.BLOCK_R)
            for n, width, tile in zip(parts, widths, tiles, strict=True)
        ]
        elements, positions = _sizes_of(student)
        gammas_of = [n * p for n, p in zip(parts, positions, strict=True)]
        directions = fresh(like, 2 * images * sum(elements) if with_directions else 0)
        gammas = fresh(like, 2 * images * sum(gammas_of) if through_sigma else 0)
        sums = fresh(like, 3 * images * sum(programs))
        _profile_fwd_kernel[(sum(programs), images)](
            Levels(
                start=sections_of(programs), x_ptr=tuple(x),
                x_step=tuple(y.stride()[:2] for y in x), t_ptr=tuple(t),
                t_step=tuple(y.stride()[:2] for y in t),
                noise_ptr=tuple(y.contiguous() for y in noise) or (seed,) * len(student),
                stream=tuple(streams), C=channels, W=widths, H=heights,
                elements_before=starts_of(elements), places_before=starts_of(positions),
                gammas_before=starts_of(gammas_of),
            ),
            sigma, seed, directions, gammas, sums, samples, b, GIVEN=bool(noise),
            DIRECTIONS=with_directions, THROUGH_SIGMA=through_sigma, FAST=FAST,
            CHANNELS=CHANNELS_PER_PROGRAM, TILES=tuple(tuple(tile) for tile in tiles),
            num_warps=warps,
        )  # fmt: skip
        values = torch.empty((len(student), images), dtype=torch.float64, device=like.device)
        weights = fresh(like, len(student), 2, images)
        _profile_finish_kernel[(images, len(student))](
            Sums(
                start=tuple(range(len(student))), parts=tuple(programs),
                parts_before=starts_of(programs),
                rows=tuple(c * samples * width for c, width in zip(channels, widths, strict=True)),
                height=heights, share=tuple(shares),
            ),
            sums, values, weights, b, NORMALISE=normalise, BLOCK_N=1024, num_warps=4,
        )  # fmt: skip
        slopes = fresh(like, images * sum(positions) if through_sigma else 0)
        if through_sigma:
            blocks = [triton.cdiv(p, 256) for p in positions]
            _profile_slope_kernel[(sum(blocks), images)](
                Slopes(
                    start=starts_of(blocks), level=tuple(range(len(student))),
                    P=tuple(positions), parts=tuple(parts),
                    rows=tuple(c * samples for c in channels),
                    places_before=starts_of(positions), gammas_before=starts_of(gammas_of),
                ),
                gammas, weights, sigma, slopes, samples, BLOCK_P=256, num_warps=4,
            )  # fmt: skip
        return values.sum(1).float(), directions, weights, means, slopes


def _sizes_of(features: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Elements and positions of an image of every level."""
    return [x[0, 0].numel() for x in features], [x.shape[3] * x.shape[4] for x in features]


@_profile_regulariser.register_fake
def _(student: Sequence[Tensor], *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sigma_grad, _, with_directions = others[-3:]
    images = student[0].shape[0] * student[0].shape[1]
    elements, positions = (images * sum(sizes) for sizes in _sizes_of(student))
    return (
        fresh(student[0], len(student)),
        fresh(student[0], 2 * elements if with_directions else 0),
        fresh(student[0], len(student), 2, images),
        fresh(student[0], positions),
        fresh(student[0], positions if sigma_grad and with_directions else 0),
    )


@torch.library.custom_op("fastseg::profile_gradient", mutates_args=(), device_types=DEVICES)
def _profile_gradient(
    student: Sequence[Tensor],
    upstream: Tensor,
    directions: Tensor,
    weights: Tensor,
    means: Tensor,
    slopes: Tensor,
) -> list[Tensor]:
    """Gradients of the features; ``upstream`` is ``[levels]``."""
    with on_device_of(upstream):
        through_sigma = (means, slopes) if slopes.numel() else None
        return gradients_of(student, 3, upstream, directions, weights, through_sigma)


@_profile_gradient.register_fake
def _(student: Sequence[Tensor], *_others: Tensor) -> list[Tensor]:
    return [torch.empty_like(x) for x in student]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output[1:], *inputs[0])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.lengths = [len(x) for x in inputs[:3]]


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    nothing: list[Any] = [[None] * length for length in ctx.lengths]
    if upstream is not None:
        directions, weights, means, slopes, *student = ctx.saved_tensors
        nothing[0] = _profile_gradient(student, upstream, directions, weights, means, slopes)
    return (*nothing, *[None] * 7)


_profile_regulariser.register_autograd(_backward, setup_context=_setup_context)


def profile_forward(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    samples: int,
    seed: Tensor,
    streams: Sequence[int],
    shares: Sequence[float],
    noise: Sequence[Tensor] | None,
    sigma_grad: bool,
    normalise: bool,
) -> Tensor:
    """``reference.profile_regulariser`` of every level, by the kernels; checked arguments.

    Args:
        student: features of every level, of one M and B.
        teacher: likewise.
        samples: S.
        seed: one int64, the key of the noise.
        streams: number of each level, part of the key.
        shares: factor of each level.
        noise: of every level, or None.
        sigma_grad: see the reference.
        normalise: see the reference.

    Returns:
        ``[levels]`` float32.
    """
    with_directions = torch.is_grad_enabled() and any(x.requires_grad for x in student)
    values: Tensor = _profile_regulariser(
        list(student), [x.detach() for x in teacher], list(noise or ()), seed, list(streams),
        list(shares), samples, sigma_grad, normalise, with_directions,
    )[0]  # fmt: skip
    return values
