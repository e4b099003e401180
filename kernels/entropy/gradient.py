"""The gradient of both regularisers: a weighted sum of directions, laid out like the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.feature_maps import starts_of
from ..common.rounding import rounded_to
from ..common.switch import UP
from .rows import (
    Planes,
    Rows,
    describe_rows,
    pick_planes,
    sections_of,
    steps_of,
    tile_of_plane,
    view_rows,
)


class Gradients(NamedTuple):
    """Levels as an argument of the kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the level's first program; one entry more, behind the last.
        x_ptr: the features, for the path through the noise scale.
        x_step: their strides from modality to modality, sample to sample, plane to plane, along the
            rows and along the columns of a plane.
        out_ptr: the gradient, written.
        out_step: its strides likewise.
        row_step: strides of the directions from image to image, plane to plane and along the rows.
        mean_step: strides of mean and slope likewise.
        F: rows of a plane: the axis along which memory runs faster.
        D: columns of a plane: the softmax axis.
        elements_before: elements of an image of the levels before.
        places_before: positions of an image of the levels before.
    """

    start: Any
    x_ptr: Any
    x_step: Any
    out_ptr: Any
    out_step: Any
    row_step: Any
    mean_step: Any
    F: Any
    D: Any
    elements_before: Any
    places_before: Any


@triton.jit
def _gradient_tile(
    levels, pid, directions_ptr, weights_ptr, upstream, mean_ptr, slope_ptr, B, WEIGHTS, PER_WEIGHT,
    LEVEL: tl.constexpr, THROUGH_SIGMA: tl.constexpr, UP: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    plane, offs_f, offs_d, mask = tile_of_plane(
        pid, levels.F[LEVEL], levels.D[LEVEL], BLOCK_F, BLOCK_D
    )
    m, b = image // B, image % B
    weights_ptr += 2 * LEVEL * WEIGHTS + image // PER_WEIGHT
    step = levels.row_step[LEVEL]
    directions_ptr += 2 * images * levels.elements_before[LEVEL]
    directions_ptr += image * step[0] + plane * step[1] + offs_f * step[2] + offs_d
    gradient = tl.load(weights_ptr) * tl.load(directions_ptr, mask=mask)
    second = tl.load(directions_ptr + images * step[0], mask=mask)
    gradient += tl.load(weights_ptr + WEIGHTS) * second
    if THROUGH_SIGMA:
        step = levels.x_step[LEVEL]
        x_ptr = levels.x_ptr[LEVEL] + (m * step[0] + b * step[1] + plane * step[2])
        x = tl.load(x_ptr + offs_f * step[3] + offs_d * step[4], mask=mask).to(tl.float32)
        step = levels.mean_step[LEVEL]
        place = images * levels.places_before[LEVEL] + image * step[0] + plane * step[1]
        place += offs_f * step[2] + offs_d
        slope = tl.load(slope_ptr + place, mask=mask)
        gradient += (x - tl.load(mean_ptr + place, mask=mask)) * slope
    gradient *= upstream
    step = levels.out_step[LEVEL]
    out_ptr = levels.out_ptr[LEVEL] + (m * step[0] + b * step[1] + plane * step[2])
    gradient = rounded_to(gradient, out_ptr.dtype.element_ty, UP)
    tl.store(out_ptr + offs_f * step[3] + offs_d * step[4], gradient, mask=mask)


@triton.jit
def _gradient_kernel(
    levels, directions_ptr, weights_ptr, upstream_ptr, mean_ptr, slope_ptr, upstream_step, B,
    WEIGHTS, PER_WEIGHT, THROUGH_SIGMA: tl.constexpr, UP: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Weighted sum of the directions of every level, see :func:`gradients_of`.

    Args:
        levels: :class:`Gradients`.
        directions_ptr: float32, ``[2, M, B, outer, inner, length]`` of every level in a row.
        weights_ptr: ``[levels, 2, WEIGHTS]`` float32.
        upstream_ptr: a float32 number for each level.
        mean_ptr: float32, mean of each position, ``[M, B, w, h]`` of every level in a row.
        slope_ptr: float32, slope of each position likewise.
        upstream_step: elements from level to level of them.
        B: samples.
        WEIGHTS: weights of a direction.
        PER_WEIGHT: images that share a weight.
        THROUGH_SIGMA: the gradient goes through the noise scale, too.
        UP: round to bfloat16 by hand, as the interpreter does not.
        TILES: rows and columns of the tile of each level.
    """
    pid = tl.program_id(0)
    for i in tl.static_range(len(TILES)):
        if (pid >= levels.start[i]) & (pid < levels.start[i + 1]):
            _gradient_tile(
                levels, pid - levels.start[i], directions_ptr, weights_ptr,
                tl.load(upstream_ptr + i * upstream_step), mean_ptr, slope_ptr, B, WEIGHTS,
                PER_WEIGHT, i, THROUGH_SIGMA, UP, TILES[i][0], TILES[i][1],
            )  # fmt: skip


def _row_steps(row: Rows, planes: Planes) -> tuple[int, int, int]:
    """Strides of contiguous rows: image, plane, rows of a plane."""
    _, _, _, inner, length = row.shape
    steps = {2: inner * length, 3: length}
    return row.elements, steps[planes.grid_axis], steps[planes.plane_axis]


def _mean_steps(row: Rows, planes: Planes) -> tuple[int, int, int]:
    """Strides of a number for each position, the same for all of the outer axis, likewise."""
    _, _, _, inner, length = row.shape
    steps = {2: 0, 3: length}
    return inner * length, steps[planes.grid_axis], steps[planes.plane_axis]


def gradients_of(
    student: Sequence[Tensor],
    dim: int,
    upstream: Tensor,
    directions: Tensor,
    weights: Tensor,
    through_sigma: tuple[Tensor, Tensor] | None,
) -> list[Tensor]:
    """``upstream (weights[0] directions[0] + weights[1] directions[1] + (x - mean) slope)``.

    Args:
        student: x, the features ``[M, B, C, h, w]`` of every level, of one M and B; the results
            have their dtypes and strides.
        dim: the softmax axis, 2 or 3.
        upstream: a float32 number for each level.
        directions: ``[2, M, B, outer, inner, length]`` float32 of every level, flat and in a row.
        weights: ``[levels, 2, M]`` or ``[levels, 2, M B]`` float32.
        through_sigma: ``(mean, slope)`` of each position, ``[M, B, w, h]`` (dim 3) of every level,
            flat and in a row, or none.
    """
    gradients = [torch.empty_like(x) for x in student]
    views = [view_rows(x, dim) for x in student]
    outs = [view_rows(x, dim) for x in gradients]
    rows = [describe_rows(x, dim) for x in student]
    planes = [pick_planes(out) for out in outs]
    start = sections_of([plane.programs for plane in planes])
    mean, slope = through_sigma or (weights, weights)
    images = rows[0].images
    _gradient_kernel[(start[-1], images)](
        Gradients(
            start=start, x_ptr=tuple(views), x_step=tuple(map(steps_of, views, planes)),
            out_ptr=tuple(outs), out_step=tuple(map(steps_of, outs, planes)),
            row_step=tuple(map(_row_steps, rows, planes)),
            mean_step=tuple(map(_mean_steps, rows, planes)),
            F=tuple(x.shape[at.plane_axis] for x, at in zip(views, planes, strict=True)),
            D=tuple(x.shape[4] for x in views),
            elements_before=starts_of([row.elements for row in rows]),
            places_before=starts_of([row.shape[3] * row.shape[4] for row in rows]),
        ),
        directions, weights, upstream, mean, slope, upstream.stride(0), rows[0].shape[1],
        weights.shape[2], images // weights.shape[2],
        THROUGH_SIGMA=through_sigma is not None, UP=UP, TILES=tuple(at.tile for at in planes),
        num_warps=4,
    )  # fmt: skip
    return gradients
