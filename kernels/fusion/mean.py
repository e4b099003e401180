"""Mean fusion: the means of all levels in one launch, and all gradients of the features in one.

    out_i[b] = mean over m of x_i[m, b],   dx_i[m, b] = dout_i[b] / M + sum_n dbranch_n,i[m, b]

The features of an encoder have several users: the fusion, and losses that compare modalities. Left
to autograd, each gradient is a tensor that is read and written again by every addition. Here the
users get branches, other names of the features, and backward the gradients of the means and of all
branches are read once each and their sum, made in float32 in a fixed order, is written once. Those
that are not there cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .. import reference
from ..common.device import on_device_of
from ..common.feature_maps import DTYPES, starts_of
from ..common.switch import DEVICES, UP, runs_on
from ..reference.network.fusion import check_fusion
from .mean_kernels import Gradients, Levels, _mean_fusion_bwd_kernel, _mean_fusion_fwd_kernel

_WARPS = 4
_BYTES = 16  # of a thread
_MOST = 2**31 - 2**16  # elements of an image are counted in 32 bits
_MOST_ROWS = 65_535  # of the second axis of a grid


def _block(x: Tensor) -> int:
    """Elements of a tile: the widest accesses of all threads."""
    return _WARPS * 32 * _BYTES // x.element_size()


def _in_order(x: Tensor) -> Tensor:
    """``[.., C, h, w]`` itself where the memory is ``[.., h, w, C]``, else a copy that is."""
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def _new_levels(like: Sequence[Tensor], sizes: Sequence[int], *rows: int) -> list[Tensor]:
    """Uninitialised ``[*rows, C, h, w]`` of every level, the channels last in memory."""
    shapes = zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True)
    return [
        x.new_empty((*rows, h, w, c)).movedim(-1, -3)
        for x, (c, h, w) in zip(like, shapes, strict=True)
    ]


def _sizes_of(levels: Sequence[Tensor]) -> list[int]:
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
    means = _new_levels(features, _sizes_of(features), rows)
    geometry, blocks = _programs_of(features)
    with on_device_of(means[0]):
        _mean_fusion_fwd_kernel[(geometry["start"][-1], rows)](
            Levels(x_ptr=tuple(features), out_ptr=tuple(means), **geometry),
            means[0] if fused is None else fused.contiguous(), b,
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
    found = _new_levels([x for x in like if x is not None], sizes, *size)
    geometry, blocks = _programs_of(found)
    with on_device_of(found[0]):
        _mean_fusion_bwd_kernel[(geometry["start"][-1], size[1])](
            # another tensor stands in for what is not there and not read
            Gradients(
                mean_ptr=tuple(
                    x if y is None else y for x, y in zip(found, of_mean, strict=True)
                ),
                branch_ptr=tuple(y or (x,) for x, y in zip(found, of_branches, strict=True)),
                out_ptr=tuple(found), **geometry,
            ),
            found[0] if fused is None else fused.contiguous(),
            1 if fused is None else len(fused), size[1], M=size[0], MARKED=fused is not None,
            MEANS=tuple(map(bool, has_mean)), BRANCHES=tuple(number), UP=UP, BLOCKS=blocks,
            num_warps=_WARPS,
        )  # fmt: skip
    return found


def _first(tensors: Sequence[Tensor]) -> Tensor | None:
    return tensors[0] if tensors else None


@torch.library.custom_op("fastseg::mean_fusion", mutates_args=(), device_types=DEVICES)
def _mean_fusion(features: Sequence[Tensor], fused: Tensor | None) -> list[Tensor]:
    return fuse_levels(features, fused)


@_mean_fusion.register_fake
def _(features: Sequence[Tensor], fused: Tensor | None) -> list[Tensor]:
    rows = features[0].shape[1] * (1 if fused is None else len(fused))
    return _new_levels(features, _sizes_of(features), rows)


@torch.library.custom_op("fastseg::mean_fusion_bwd", mutates_args=(), device_types=DEVICES)
def _mean_fusion_bwd(
    means: Sequence[Tensor],
    branches: Sequence[Tensor],
    has_mean: Sequence[int],
    number: Sequence[int],
    fused: Tensor | None,
    size: Sequence[int],
    sizes: Sequence[int],
) -> list[Tensor]:
    return add_gradients(means, branches, has_mean, number, fused, size, sizes)


@_mean_fusion_bwd.register_fake
def _(
    means: Sequence[Tensor],
    branches: Sequence[Tensor],
    has_mean: Sequence[int],
    number: Sequence[int],
    fused: Tensor | None,
    size: Sequence[int],
    sizes: Sequence[int],
) -> list[Tensor]:
    own, others = iter(means), iter(branches)
    like = []
    for there, count in zip(has_mean, number, strict=True):
        found = [next(own) for _ in range(there)] + [next(others) for _ in range(count)]
        like.append(found[0])
    return _new_levels(like, sizes, *size)


def _gradients(
    ctx: Any, means: Sequence[Tensor | None], branches: Sequence[Sequence[Tensor | None]]
) -> list[Tensor | None]:
    """Gradients of all levels, by one launch for those that have more than one of a branch."""
    (fused,) = ctx.saved_tensors or (None,)
    found: list[Tensor | None] = [None] * len(means)
    places, own, others, number = [], [], [], []
    for i, mean in enumerate(means):
        there = [x for branch in branches if (x := branch[i]) is not None]
        if mean is None and len(there) < 2:
            found[i] = there[0] if there else None
            continue
        places.append(i)
        own.append(mean)
        others += there
        number.append(len(there))
    if places:
        sums = _mean_fusion_bwd(
            [x for x in own if x is not None], others, [int(x is not None) for x in own], number,
            fused, ctx.size, [ctx.sizes[3 * i + axis] for i in places for axis in range(3)],
        )  # fmt: skip
        for i, x in zip(places, sums, strict=True):
            found[i] = x
    return found


def _keep(ctx: Any, features: Sequence[Tensor], fused: Tensor | None) -> None:
    ctx.set_materialize_grads(False)
    ctx.size, ctx.sizes = list(features[0].shape[:2]), _sizes_of(features)
    if fused is not None:
        ctx.save_for_backward(fused)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    _keep(ctx, *inputs)


def _backward(ctx: Any, means: Sequence[Tensor | None]) -> tuple[list[Tensor | None], None]:
    return _gradients(ctx, means, []), None


_mean_fusion.register_autograd(_backward, setup_context=_setup_context)


class _Branched(torch.autograd.Function):
    """The means and the features once for each branch, where the gradients of all of them meet."""

    @staticmethod
    def forward(
        ctx: Any, branches: int, fused: Tensor | None, *features: Tensor
    ) -> tuple[Tensor, ...]:
        _keep(ctx, features, fused)
        same = [x.detach() for _ in range(branches) for x in features]
        return (*_means(features, fused), *same)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        levels = len(ctx.sizes) // 3
        means, *branches = (grads[i : i + levels] for i in range(0, len(grads), levels))
        return (None, None, *_gradients(ctx, means, branches))


def _means(features: Sequence[Tensor], fused: Tensor | None) -> list[Tensor]:
    if len(features[0]) == 1 and fused is None:
        return [x[0] for x in features]
    means: list[Tensor] = _mean_fusion(list(features), fused)
    return means


def _served(features: Sequence[Tensor], fused: Tensor | None) -> bool:
    """True if the kernels take these levels, which the definition accepts."""
    rows = features[0].shape[1] * (1 if fused is None else len(fused))
    return (
        0 < rows <= _MOST_ROWS
        and all(0 < x.shape[2:].numel() < _MOST and x.dtype in DTYPES for x in features)
        and all(map(runs_on, features))
    )


def mean_fusion(
    features: Sequence[Tensor], fused: Tensor | None = None, branches: int = 0
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Means over the modalities of all levels, and the features for their other users.

        out_i[p, b] = sum_m fused[p, m, b] x_i[m, b] / sum_m fused[p, m, b]
        dx_i[m, b] = sum_p fused[p, m, b] dout_i[p, b] / sum_m fused[p, m, b] + sum_n dbranch_n,i[m, b]

    On a GPU each pass is one launch for all levels, sums are made in float32 and rounded once, and
    features that are not marked are not read. Float64 and empty features take the definition.
    Under ``torch.compile``, which joins additions by itself, and without gradients the branches are
    the features.

    Args:
        features: ``[M, B, C_i, h_i, w_i]`` of one M and B, any float dtypes. The channels last in
            memory are read in place, other strides copied.
        fused: ``[P, M, B]``, 1 or 0, which modalities each of P fusions has of each sample, at
            least one; None: one fusion of all of them.
        branches: how many users the features have besides the fusion.

    Returns:
        The means, per level ``[B, C_i, h_i, w_i]``, with ``fused`` ``[P B, ...]``, one fusion after
        the other, in the dtype of the features and with the channels last in memory; and for each
        branch the features, not to be changed in place.

    Raises:
        ValueError: shapes, dtypes, devices or the number of branches do not fit.
    """
    check_fusion(features, fused, branches)
    if not _served(features, fused):
        return reference.mean_fusion(features, fused, branches)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in features)
    if not (learns and branches) or torch.compiler.is_compiling():
        return _means(features, fused), [list(features) for _ in range(branches)]
    out: tuple[Tensor, ...] = _Branched.apply(branches, fused, *features)  # type: ignore[no-untyped-call]
    levels = len(features)
    means, *same = (list(out[i : i + levels]) for i in range(0, len(out), levels))
    return means, same
