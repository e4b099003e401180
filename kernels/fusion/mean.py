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
from torch import Tensor

from .. import reference
from ..common.feature_maps import DTYPES
from ..common.switch import DEVICES, runs_on
from ..reference.network.fusion import check_fusion
from .mean_launch import add_gradients, fuse_levels, new_levels, sizes_of

_MOST = 2**31 - 2**16  # elements of an image are counted in 32 bits
_MOST_ROWS = 65_535  # of the second axis of a grid


@torch.library.custom_op("fastseg::mean_fusion", mutates_args=(), device_types=DEVICES)
def _mean_fusion(features: Sequence[Tensor], fused: Tensor | None) -> list[Tensor]:
    return fuse_levels(features, fused)


@_mean_fusion.register_fake
def _(features: Sequence[Tensor], fused: Tensor | None) -> list[Tensor]:
    rows = features[0].shape[1] * (1 if fused is None else len(fused))
    return new_levels(features, sizes_of(features), rows)


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
    return new_levels(like, sizes, *size)


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
    ctx.size, ctx.sizes = list(features[0].shape[:2]), sizes_of(features)
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
        ctx: Any, fuses: bool, branches: int, fused: Tensor | None, *features: Tensor
    ) -> tuple[Tensor, ...]:
        _keep(ctx, features, fused)
        ctx.fuses = fuses
        same = [x.detach() for _ in range(branches) for x in features]
        return (*(_means(features, fused) if fuses else ()), *same)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        levels = len(ctx.sizes) // 3
        groups = [grads[i : i + levels] for i in range(0, len(grads), levels)]
        means = groups.pop(0) if ctx.fuses else [None] * levels
        return (None, None, None, *_gradients(ctx, means, groups))


def _means(features: Sequence[Tensor], fused: Tensor | None) -> list[Tensor]:
    if len(features[0]) == 1 and fused is None:
        return [x[0] for x in features]
    means: list[Tensor] = _mean_fusion(list(features), fused)
    return means


def _served(features: Sequence[Tensor], fused: Tensor | None) -> bool:
    """True if the kernels take these levels, which the definition accepts."""
    # asked first: a question about sizes would bind those of an exported graph
    if not all(map(runs_on, features)):
        return False
    rows = features[0].shape[1] * (1 if fused is None else len(fused))
    return 0 < rows <= _MOST_ROWS and all(
        0 < x.shape[2:].numel() < _MOST and x.dtype in DTYPES for x in features
    )


def mean_fusion(
    features: Sequence[Tensor], fused: Tensor | None = None, branches: int = 0
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Means over the modalities of all levels, and the features for their other users.

        w[p, m, b] = fused[p, m, b] / sum_m fused[p, m, b]
        out_i[p, b] = sum_m w[p, m, b] x_i[m, b]
        dx_i[m, b] = sum_p w[p, m, b] dout_i[p, b] + sum_n dbranch_n,i[m, b]

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
    if not (branches and _learns(features)):
        return _means(features, fused), [list(features) for _ in range(branches)]
    means, *same = _branched(True, branches, fused, features)
    return means, same


def fan_out(features: Sequence[Tensor], users: int) -> list[list[Tensor]]:
    """The same features for several users, whose gradients are added at once.

        dx_i = sum_n duser_n,i

    On a GPU they are added by one launch for all levels, in float32 with one rounding. What is
    served, and where the results are the features themselves, is as for :func:`mean_fusion`.

    Args:
        features: ``[M, B, C_i, h_i, w_i]`` of one M and B, any float dtypes.
        users: how many.

    Returns:
        For each user the features, not to be changed in place.

    Raises:
        ValueError: shapes, dtypes, devices or the number of users do not fit.
    """
    check_fusion(features, None, users)
    if users < 2 or not _served(features, None) or not _learns(features):
        return reference.fan_out(features, users)
    return _branched(False, users, None, features)


def _learns(features: Sequence[Tensor]) -> bool:
    """True if branches are worth it: eager autograd adds gradients one by one."""
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in features)
    return learns and not torch.compiler.is_compiling()


def _branched(
    fuses: bool, branches: int, fused: Tensor | None, features: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Groups of the levels: the means, if they are wanted, and the branches."""
    out: tuple[Tensor, ...] = _Branched.apply(fuses, branches, fused, *features)  # type: ignore[no-untyped-call]
    return [list(out[i : i + len(features)]) for i in range(0, len(out), len(features))]
