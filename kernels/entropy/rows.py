"""Features as rows of softmax groups, the members of a group next to each other, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.rounding import rounded_to
from ..common.switch import UP


def fresh(like: Tensor, *shape: int) -> Tensor:
    """Float32 memory on the device of ``like``."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


class Rows(NamedTuple):
    """Features ``[M, B, C, h, w]`` seen as softmax groups ``[M, B, outer, inner, length]``."""

    shape: tuple[int, int, int, int, int]
    outer_step: int
    """Distance of neighbours along ``outer`` in a contiguous ``[C, h, w]``; along inner it is 1."""
    member_step: int

    @property
    def images(self) -> int:
        """Feature maps: modalities times samples."""
        return self.shape[0] * self.shape[1]

    @property
    def groups(self) -> int:
        """Softmax groups of an image."""
        return self.shape[2] * self.shape[3]


def view_rows(features: Tensor, dim: int) -> Tensor:
    """``[M, B, C, h, w]`` as ``[M, B, h, w, C]`` (dim 2) or ``[M, B, C, w, h]`` (dim 3)."""
    return features.movedim(2, 4) if dim == 2 else features.transpose(3, 4)


def describe_rows(features: Tensor, dim: int) -> Rows:
    """Sizes of :func:`view_rows`."""
    m, b, c, h, w = features.shape
    return Rows((m, b, h, w, c), w, h * w) if dim == 2 else Rows((m, b, c, w, h), h * w, w)


@triton.jit
def _tile_of_plane(F, D, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows and columns of a program's tile of a plane ``[F, D]``, and the mask."""
    blocks = tl.cdiv(D, BLOCK_D)
    offs_f = (tl.program_id(0) // blocks) * BLOCK_F + tl.arange(0, BLOCK_F).to(tl.int64)
    offs_d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    return offs_f[:, None], offs_d[None, :], (offs_f < F)[:, None] & (offs_d < D)[None, :]


@triton.jit
def _to_rows_kernel(
    x_ptr, out_ptr, B, F, D, x_m, x_b, x_o, x_f, x_d, out_g, out_o, out_f,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Copy features so that the members of a softmax group lie next to each other.

    Args:
        x_ptr: the features, any strides.
        out_ptr: the same, written.
        B: samples.
        F: rows of a plane: the axis along which memory runs faster.
        D: columns of a plane: the softmax axis.
        x_m: stride of x from modality to modality.
        x_b: from sample to sample.
        x_o: from plane to plane.
        x_f: along the rows.
        x_d: along the columns.
        out_g: stride of the copy from image to image.
        out_o: from plane to plane.
        out_f: along the rows.
        BLOCK_F: rows of a tile.
        BLOCK_D: columns of a tile.
    """
    pid_o, pid_g = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    offs_f, offs_d, mask = _tile_of_plane(F, D, BLOCK_F, BLOCK_D)
    x_ptr += (pid_g // B) * x_m + (pid_g % B) * x_b + pid_o * x_o
    x = tl.load(x_ptr + offs_f * x_f + offs_d * x_d, mask=mask)
    tl.store(out_ptr + pid_g * out_g + pid_o * out_o + offs_f * out_f + offs_d, x, mask=mask)


@triton.jit
def _gradient_kernel(
    directions_ptr, weights_ptr, upstream_ptr, x_ptr, mean_ptr, slope_ptr, out_ptr,
    B, PER_WEIGHT, next_weight, next_direction, F, D, row_g, row_o, row_f, x_m, x_b, x_o, x_f, x_d,
    out_m, out_b, out_o, out_f, out_d, mean_g, mean_o, mean_f,
    THROUGH_SIGMA: tl.constexpr, UP: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Weighted sum of the directions, see :func:`gradient_of`.

    Args:
        directions_ptr: ``[2, M, B, outer, inner, length]`` float32.
        weights_ptr: float32, two rows of weights.
        upstream_ptr: one float32 number.
        x_ptr: the features, for the path through the noise scale.
        mean_ptr: float32, mean of each position.
        slope_ptr: float32, slope of each position.
        out_ptr: the gradient, written.
        B: samples.
        PER_WEIGHT: images that share a weight.
        next_weight: elements from the first row of weights to the second.
        next_direction: elements from the first direction to the second.
        F: rows of a plane: the axis along which memory runs faster.
        D: columns of a plane: the softmax axis.
        row_g: stride of the directions from image to image.
        row_o: from plane to plane.
        row_f: along the rows.
        x_m: stride of x from modality to modality.
        x_b: from sample to sample.
        x_o: from plane to plane.
        x_f: along the rows.
        x_d: along the columns.
        out_m: stride of the gradient from modality to modality.
        out_b: from sample to sample.
        out_o: from plane to plane.
        out_f: along the rows.
        out_d: along the columns.
        mean_g: stride of mean and slope from image to image.
        mean_o: from plane to plane.
        mean_f: along the rows.
        THROUGH_SIGMA: the gradient goes through the noise scale, too.
        UP: round to bfloat16 by hand, as the interpreter does not.
        BLOCK_F: rows of a tile.
        BLOCK_D: columns of a tile.
    """
    pid_o, pid_g = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    offs_f, offs_d, mask = _tile_of_plane(F, D, BLOCK_F, BLOCK_D)
    pid_m, pid_b = pid_g // B, pid_g % B
    weights_ptr += pid_g // PER_WEIGHT
    directions_ptr += pid_g * row_g + pid_o * row_o + offs_f * row_f + offs_d
    gradient = tl.load(weights_ptr) * tl.load(directions_ptr, mask=mask)
    second = tl.load(directions_ptr + next_direction, mask=mask)
    gradient += tl.load(weights_ptr + next_weight) * second
    if THROUGH_SIGMA:
        x_ptr += pid_m * x_m + pid_b * x_b + pid_o * x_o
        x = tl.load(x_ptr + offs_f * x_f + offs_d * x_d, mask=mask).to(tl.float32)
        place = pid_g * mean_g + pid_o * mean_o + offs_f * mean_f + offs_d
        slope = tl.load(slope_ptr + place, mask=mask)
        gradient += (x - tl.load(mean_ptr + place, mask=mask)) * slope
    gradient *= tl.load(upstream_ptr)
    out_ptr += pid_m * out_m + pid_b * out_b + pid_o * out_o
    gradient = rounded_to(gradient, out_ptr.dtype.element_ty, UP)
    tl.store(out_ptr + offs_f * out_f + offs_d * out_d, gradient, mask=mask)


class Planes(NamedTuple):
    """Cut of ``[M, B, outer, inner, length]`` into planes and tiles for a change of layout."""

    grid_axis: int
    plane_axis: int
    """The axis, 2 or 3, along which memory runs faster: reads and writes are both wide."""
    block_f: int
    block_d: int
    grid: tuple[int, int, int]


def pick_planes(view: Tensor) -> Planes:
    """Planes of a view that :func:`view_rows` made."""
    o, f = (3, 2) if view.stride(2) < view.stride(3) else (2, 3)
    m, b, length = view.shape[0], view.shape[1], view.shape[4]
    block_f = min(64, max(16, triton.next_power_of_2(view.shape[f])))
    block_d = min(64, max(16, triton.next_power_of_2(length)))
    tiles = triton.cdiv(view.shape[f], block_f) * triton.cdiv(length, block_d)
    return Planes(o, f, block_f, block_d, (tiles, view.shape[o], m * b))


def to_rows(features: Tensor, dim: int) -> Tensor:
    """A contiguous :func:`view_rows`, without a copy where memory runs that way already."""
    view = view_rows(features, dim)
    if view.is_contiguous():
        return view
    out = torch.empty(view.shape, dtype=view.dtype, device=view.device)
    o, f, block_f, block_d, grid = pick_planes(view)
    m, b, *_ = strides = view.stride()
    _to_rows_kernel[grid](
        view, out, view.shape[1], view.shape[f], view.shape[4], m, b, strides[o], strides[f],
        strides[4], out.stride(1), out.stride(o), out.stride(f), BLOCK_F=block_f, BLOCK_D=block_d,
        num_warps=4,
    )  # fmt: skip
    return out


def gradient_of(
    student: Tensor,
    dim: int,
    upstream: Tensor,
    directions: Tensor,
    weights: Tensor,
    through_sigma: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """``upstream (weights[0] directions[0] + weights[1] directions[1] + (x - mean) slope)``.

    Args:
        student: x, the features ``[M, B, C, h, w]``; the result has their dtype and strides.
        dim: the softmax axis, 2 or 3.
        upstream: one float32 number.
        directions: ``[2, M, B, outer, inner, length]`` float32.
        weights: ``[2, M]`` or ``[2, M B]`` float32.
        through_sigma: ``(mean, slope)`` of each position, ``[M, B, w, h]`` (dim 3), or none.
    """
    gradient = torch.empty_like(student)
    x, out = view_rows(student, dim), view_rows(gradient, dim)
    o, f, block_f, block_d, grid = pick_planes(out)
    mean, slope = through_sigma or (weights, weights)
    next_direction, *rows = directions.stride()
    inside = (x.shape[3] * x.shape[4], *(0 if axis == 2 else x.shape[4] for axis in (o, f)))
    _gradient_kernel[grid](
        directions, weights, upstream, x, mean, slope, out,
        x.shape[1], grid[2] // weights.shape[1], weights.shape[1], next_direction,
        x.shape[f], x.shape[4],
        rows[1], rows[o], rows[f],
        *(x.stride(axis) for axis in (0, 1, o, f, 4)),
        *(out.stride(axis) for axis in (0, 1, o, f, 4)), *inside,
        THROUGH_SIGMA=through_sigma is not None, UP=UP, BLOCK_F=block_f, BLOCK_D=block_d,
        num_warps=4,
    )  # fmt: skip
    return gradient
