"""Features as rows of softmax groups, the members of a group next to each other in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.feature_maps import starts_of


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

    @property
    def elements(self) -> int:
        """Elements of an image."""
        return self.groups * self.shape[4]


def view_rows(features: Tensor, dim: int) -> Tensor:
    """``[M, B, C, h, w]`` as ``[M, B, h, w, C]`` (dim 2) or ``[M, B, C, w, h]`` (dim 3)."""
    return features.movedim(2, 4) if dim == 2 else features.transpose(3, 4)


def describe_rows(features: Tensor, dim: int) -> Rows:
    """Sizes of :func:`view_rows`."""
    m, b, c, h, w = features.shape
    return Rows((m, b, h, w, c), w, h * w) if dim == 2 else Rows((m, b, c, w, h), h * w, w)


def sections_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """First positions of ranges of these sizes that lie one after the other, and where they end."""
    return (*starts_of(sizes), sum(sizes))


def group_step(view: Tensor) -> int | None:
    """Distance of neighbouring groups of a view of rows; None where it is not one number."""
    _, _, outer, inner, length = view.shape
    if inner == 1:
        return view.stride(2) if outer > 1 else length
    even = outer == 1 or view.stride(2) == inner * view.stride(3)
    return view.stride(3) if even else None


def _is_readable(view: Tensor, dim: int) -> bool:
    """True if kernels read the view in place: its members lie next to each other.

    Channels may have a gap behind those of a pixel, as in a part of a wider map.
    """
    length, step = view.shape[4], group_step(view)
    return (length == 1 or view.stride(4) == 1) and (
        step is not None if dim == 2 else step == length
    )


class Copies(NamedTuple):
    """Copies as an argument of a kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the copy's first program; one entry more, behind the last.
        x_ptr: the features, any strides.
        x_step: their strides from modality to modality, sample to sample, plane to plane, along the
            rows and along the columns of a plane.
        out_ptr: the same as rows, contiguous, written.
        out_step: strides of the rows from image to image, plane to plane and along a plane's rows.
        F: rows of a plane: the axis along which memory runs faster.
        D: columns of a plane: the softmax axis.
    """

    start: Any
    x_ptr: Any
    x_step: Any
    out_ptr: Any
    out_step: Any
    F: Any
    D: Any


@triton.jit
def tile_of_plane(pid, F, D, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr):
    """Plane of a program, rows and columns of its tile of a plane ``[F, D]``, and the mask."""
    blocks = tl.cdiv(D, BLOCK_D)
    tiles = tl.cdiv(F, BLOCK_F) * blocks
    tile = pid % tiles
    offs_f = (tile // blocks) * BLOCK_F + tl.arange(0, BLOCK_F).to(tl.int64)
    offs_d = (tile % blocks) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    mask = (offs_f < F)[:, None] & (offs_d < D)[None, :]
    return (pid // tiles).to(tl.int64), offs_f[:, None], offs_d[None, :], mask


@triton.jit
def _copy_tile(copies, pid, image, B, COPY: tl.constexpr, BLOCK_F: tl.constexpr,
               BLOCK_D: tl.constexpr):  # fmt: skip
    plane, offs_f, offs_d, mask = tile_of_plane(
        pid, copies.F[COPY], copies.D[COPY], BLOCK_F, BLOCK_D
    )
    step, to = copies.x_step[COPY], copies.out_step[COPY]
    x_ptr = copies.x_ptr[COPY] + ((image // B) * step[0] + (image % B) * step[1] + plane * step[2])
    x = tl.load(x_ptr + offs_f * step[3] + offs_d * step[4], mask=mask)
    out_ptr = copies.out_ptr[COPY] + (image * to[0] + plane * to[1])
    tl.store(out_ptr + offs_f * to[2] + offs_d, x, mask=mask)


@triton.jit
def _to_rows_kernel(copies, B, TILES: tl.constexpr):
    """Copy features so that the members of a softmax group lie next to each other.

    Args:
        copies: :class:`Copies`.
        B: samples.
        TILES: rows and columns of the tile of each copy.
    """
    pid, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    for i in tl.static_range(len(TILES)):
        if (pid >= copies.start[i]) & (pid < copies.start[i + 1]):
            _copy_tile(copies, pid - copies.start[i], image, B, i, TILES[i][0], TILES[i][1])


class Planes(NamedTuple):
    """Cut of ``[M, B, outer, inner, length]`` into planes and tiles for a change of layout."""

    grid_axis: int
    plane_axis: int
    """The axis, 2 or 3, along which memory runs faster: reads and writes are both wide."""
    tile: tuple[int, int]
    programs: int
    """Tiles of all planes of an image."""


def pick_planes(view: Tensor) -> Planes:
    """Planes of a view that :func:`view_rows` made."""
    o, f = (3, 2) if view.stride(2) < view.stride(3) else (2, 3)
    length = view.shape[4]
    block_f = min(64, max(16, triton.next_power_of_2(view.shape[f])))
    block_d = min(64, max(16, triton.next_power_of_2(length)))
    tiles = triton.cdiv(view.shape[f], block_f) * triton.cdiv(length, block_d)
    return Planes(o, f, (block_f, block_d), tiles * view.shape[o])


def to_rows(features: Sequence[Tensor], dim: int) -> list[Tensor]:
    """:func:`view_rows` of each; those that kernels cannot read in place are copied by one launch.

    Args:
        features: maps ``[M, B, C, h, w]`` of the same M and B.
        dim: the softmax axis, 2 or 3.
    """
    rows = [view_rows(x, dim) for x in features]
    places = [i for i, view in enumerate(rows) if not _is_readable(view, dim)]
    if not places:
        return rows
    views = [rows[i] for i in places]
    copied = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in views]
    planes = [pick_planes(view) for view in views]
    start = sections_of([plane.programs for plane in planes])
    m, b = views[0].shape[:2]
    pairs = list(zip(views, planes, strict=True))
    _to_rows_kernel[(start[-1], m * b)](
        Copies(
            start=start, x_ptr=tuple(views), x_step=tuple(steps_of(x, at) for x, at in pairs),
            out_ptr=tuple(copied),
            out_step=tuple(
                (out.stride(1), out.stride(at.grid_axis), out.stride(at.plane_axis))
                for out, at in zip(copied, planes, strict=True)
            ),
            F=tuple(x.shape[at.plane_axis] for x, at in pairs), D=tuple(x.shape[4] for x in views),
        ),
        b, TILES=tuple(plane.tile for plane in planes), num_warps=4,
    )  # fmt: skip
    for i, out in zip(places, copied, strict=True):
        rows[i] = out
    return rows


def steps_of(view: Tensor, planes: Planes) -> tuple[int, ...]:
    """Strides of a view: modality, sample, plane, rows and columns of a plane."""
    return tuple(view.stride(i) for i in (0, 1, planes.grid_axis, planes.plane_axis, 4))
