"""The launches of mean fusion: one forward, one backward, for all levels."""

from __future__ import annotations

from collections.abc import Sequence

import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.feature_maps import starts_of
from ..common.switch import UP
from .mean_kernels import Gradients, Levels, _mean_fusion_bwd_kernel, _mean_fusion_fwd_kernel

_WARPS = 4
_BYTES = 16  # of a thread


def _block(x: Tensor) -> int:
    """Elements of a tile: the widest accesses of all threads."""
    return _WARPS * 32 * _BYTES // x.element_size()


def _in_order(x: Tensor) -> Tensor:
    """``[.., C, h, w]`` itself where the memory is ``[.., h, w, C]``, else a copy that is."""
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def new_levels(like: Sequence[Tensor], sizes: Sequence[int], *rows: int) -> list[Tensor]:
    """Uninitialised ``[*rows, C, h, w]`` of every level, the channels last in memory."""
    shapes = zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True)
    return [
        x.new_empty((*rows, h, w, c)).movedim(-1, -3)
        for x, (c, h, w) in zip(like, shapes, strict=True)
    ]


def sizes_of(levels: Sequence[Tensor]) -> list[int]:
    """C, h and w of one level after the other."""
    return [number for x in levels for number in x.shape[-3:]]


def _programs_of(levels: Sequence[Tensor]) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """First programs and sizes of the levels of an image, and their tiles."""
    sizes, blocks = tuple(x.shape[-3:].numel() for x in levels), tuple(map(_block, levels))
    programs = [triton.cdiv(size, block) for size, block in zip(sizes, blocks, strict=True)]
    return {"start": (*starts_of(programs), sum(programs)), "size": sizes}, blocks


def fuse_levels(features: Sequence[Tensor], fused: Tensor | None) -> list[Tensor]:
    """The forward launch."""
    features = [_in_order(x) for x in features]
    m, b = features[0].shape[:2]
    rows = b if fused is None else len(fused) * b
    means = new_levels(features, sizes_of(features), rows)
    geometry, blocks = _programs_of(features)
    nothing = means[0].new_empty(1)
    with on_device_of(means[0]):
        _mean_fusion_fwd_kernel[(geometry["start"][-1], rows)](
            Levels(x_ptr=tuple(features), out_ptr=tuple(means), **geometry),
            nothing if fused is None else fused.contiguous(), b,
            M=m, MARKED=fused is not None, UP=UP, BLOCKS=blocks, num_warps=_WARPS,
        )  # fmt: skip
    return means


def add_gradients(
    means: Sequence[Tensor],
    branches: Sequence[Tensor],
    has_mean: Sequence[int],
    number: Sequence[int],
    fused: Tensor | None,
    size: Sequence[int],
    sizes: Sequence[int],
) -> list[Tensor]:
    """The backward launch.

    Args:
        means: gradients of the means of those levels that have one.
        branches: gradients of the branches, one level after the other.
        has_mean: for each level, 1 if it has one of the means.
        number: for each level, how many it has of the branches; at least one of both.
        fused: marks, or None.
        size: M and B.
        sizes: C, h and w of one level after the other.
    """
    own, others = map(_in_order, means), map(_in_order, branches)
    of_mean = [next(own) if there else None for there in has_mean]
    of_branches = [tuple(next(others) for _ in range(n)) for n in number]
    like = [x if y is None else y for x, y in zip(map(_first, of_branches), of_mean, strict=True)]
    found = new_levels([x for x in like if x is not None], sizes, *size)
    geometry, blocks = _programs_of(found)
    nothing = found[0].new_empty(1)  # stands in for what is not there and not read
    with on_device_of(found[0]):
        _mean_fusion_bwd_kernel[(geometry["start"][-1], size[1])](
            Gradients(
                mean_ptr=tuple(nothing if x is None else x for x in of_mean),
                branch_ptr=tuple(x or (nothing,) for x in of_branches),
                out_ptr=tuple(found), **geometry,
            ),
            nothing if fused is None else fused.contiguous(),
            1 if fused is None else len(fused), size[1], M=size[0], MARKED=fused is not None,
            MEANS=tuple(map(bool, has_mean)), BRANCHES=tuple(number), UP=UP, BLOCKS=blocks,
            num_warps=_WARPS,
        )  # fmt: skip
    return found


def _first(tensors: Sequence[Tensor]) -> Tensor | None:
    return tensors[0] if tensors else None
