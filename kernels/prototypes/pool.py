"""Masked prototype pooling: the class means of any number of feature maps in one pass over them.

    prototypes[m, b, k] = sum_p [y[b, p] = k] features[m, b, :, p] / max(counts[b, k], 1)

A block of pixels is a one-hot matrix ``[K, pixels]`` times the features ``[pixels, M C]``, on the
tensor cores with a float32 accumulator. The levels of an encoder, both networks and all modalities
share one launch; the full-resolution labels are sampled where they are used. Each program sums a
chunk of the pixels and a second launch adds the chunks in a fixed order, so a result repeats bit
by bit. Backward is one gather: a pixel takes its class's gradient over the class's count.

Source: RobustSeg, arXiv:2505.12861; the published code waits for the GPU at every class mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .. import reference
from ..common.device import on_device_of
from ..common.feature_maps import DTYPES, FeatureMaps, group_maps, layout_of, new_maps, starts_of
from ..common.switch import DEVICES, UP, runs_on
from ..reference.pooling import Divide
from .pool_kernels import (
    Places,
    Reductions,
    _prototype_pool_bwd_kernel,
    _prototype_pool_fwd_kernel,
    _prototype_pool_reduce_kernel,
)

MAX_CLASSES = 256  # a tile holds all of them
# at least, as far as there are pixels: some for each of the 132 multiprocessors of an H200
_PROGRAMS, _PROGRAMS_BWD = 512, 2048


def tiles(num_classes: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of the forward kernel; its sums take 32 registers of a thread."""
    block_k = max(16, triton.next_power_of_2(num_classes))
    warps = 4 if block_k <= 64 else 8
    full = dtype == torch.float32
    return {
        "BLOCK_K": block_k,
        "BLOCK_P": 16 if full else 64 if warps == 4 else 32,
        "BLOCK_N": min(128, 1024 * warps // block_k),
        "num_warps": warps,
        "num_stages": 4 if full else 3,
    }


def tiles_bwd(channels_last: bool) -> dict[str, int]:
    """Tile of the backward kernel."""
    pixels, columns = (32, 128) if channels_last else (1024, 16)
    return {"BLOCK_P": pixels, "BLOCK_N": columns, "num_warps": 4}


def sizes_of(shapes: Sequence[Sequence[int]], num_classes: int) -> list[int]:
    """Numbers of elements of the prototypes of maps ``[M, B, C, h, w]``."""
    return [m * b * num_classes * c for m, b, c, *_ in shapes]


def pool_maps(
    features: Sequence[Tensor], labels: Tensor, num_classes: int, twice: bool
) -> tuple[Tensor, Tensor]:
    """Prototypes ``[M, B, K, C]`` of all maps, flat and in a row; counts ``[N, B, K]``."""
    sizes = sizes_of([x.shape for x in features], num_classes)
    prototypes = labels.new_empty(sum(sizes), dtype=torch.float32)
    shape = (len(features), labels.shape[0], num_classes)
    counts = labels.new_empty(shape, dtype=torch.int64)
    for maps in group_maps(features, starts_of(sizes)):
        _pool_group(maps, labels, prototypes, counts, twice)
    return prototypes, counts


def _pool_group(
    maps: FeatureMaps, labels: Tensor, prototypes: Tensor, counts: Tensor, twice: bool
) -> None:
    num_classes = counts.shape[2]
    tile = tiles(num_classes, maps.dtype)
    block_n = tile["BLOCK_N"]
    chunk = maps.chunk(block_n, tile["BLOCK_P"], min(2048, 32 * tile["BLOCK_K"]), _PROGRAMS)
    geometry, programs = maps.geometry(block_n, chunk, counting=True)
    sums = prototypes.new_empty((programs, num_classes, block_n))
    pixels = counts.new_empty((programs, num_classes), dtype=torch.int32)
    splits = [triton.cdiv(n, chunk) for n in maps.pixels]
    most = triton.next_power_of_2(max(splits))
    reductions = [n * maps.batch * num_classes for n in maps.tiles(block_n)]
    with on_device_of(labels):
        _prototype_pool_fwd_kernel[(programs,)](
            geometry, labels, sums, pixels, *labels.shape, *labels.stride(), num_classes,
            STRIDED=maps.strided(labels), CHANNELS_LAST=maps.channels_last, VEC=maps.vec,
            CHUNK=chunk, SPLIT=maps.dtype == torch.float32, UP=UP, **tile,
        )  # fmt: skip
        _prototype_pool_reduce_kernel[(sum(reductions),)](
            Reductions(
                start=starts_of(reductions), splits=tuple(splits),
                first=geometry.start, tiles=geometry.tiles,
                # the last tile of the first map of each size has counted
                count_first=tuple(
                    geometry.start[i] + geometry.tiles[i] - 1 for i in maps.owners
                ),
                count_tiles=tuple(geometry.tiles[i] for i in maps.owners),
                rank=maps.ranks, C=maps.channels, columns=maps.columns, out=maps.outs,
            ),
            sums, pixels, prototypes, counts, maps.batch, num_classes,
            TWICE=twice, SPLITS=most, BLOCK_S=min(16, most), BLOCK_N=block_n, num_warps=4,
        )  # fmt: skip


def unpool_maps(
    grad: Tensor,
    scale: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    layouts: Sequence[int],
    twice: bool,
) -> list[Tensor]:
    """Gradients of maps of the given layouts, from that of their flat prototypes times a scale."""
    grads = new_maps(layouts, labels)
    num_classes = counts.shape[2]
    grad, counts = grad.contiguous(), counts.contiguous()
    for maps in group_maps(grads, starts_of(sizes_of([x.shape for x in grads], num_classes))):
        tile = tiles_bwd(maps.channels_last)
        chunk = maps.chunk(tile["BLOCK_N"], tile["BLOCK_P"], 1024, _PROGRAMS_BWD)
        geometry, programs = maps.geometry(tile["BLOCK_N"], chunk, counting=False)
        with on_device_of(labels):
            _prototype_pool_bwd_kernel[(programs,)](
                geometry, Places(rank=maps.ranks, out=maps.outs), labels, grad, counts, scale,
                *labels.shape, *labels.stride(), num_classes,
                STRIDED=maps.strided(labels), CHANNELS_LAST=maps.channels_last, VEC=maps.vec,
                CHUNK=chunk, HAS_SCALE=scale is not None, TWICE=twice, UP=UP, **tile,
            )  # fmt: skip
    return grads


@torch.library.custom_op("fastseg::prototype_pool", mutates_args=(), device_types=DEVICES)
def _prototype_pool(
    features: Sequence[Tensor], labels: Tensor, num_classes: int, twice: bool
) -> tuple[Tensor, Tensor]:
    return pool_maps(features, labels, num_classes, twice)


@_prototype_pool.register_fake
def _(
    features: Sequence[Tensor], labels: Tensor, num_classes: int, twice: bool
) -> tuple[Tensor, Tensor]:
    size = sum(sizes_of([x.shape for x in features], num_classes))
    shape = (len(features), labels.shape[0], num_classes)
    return labels.new_empty(size, dtype=torch.float32), labels.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("fastseg::prototype_pool_bwd", mutates_args=(), device_types=DEVICES)
def prototype_pool_bwd(
    grad: Tensor,
    scale: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    layouts: Sequence[int],
    twice: bool,
) -> list[Tensor]:
    """:func:`unpool_maps` as an operator."""
    return unpool_maps(grad, scale, labels, counts, layouts, twice)


@prototype_pool_bwd.register_fake
def _(
    grad: Tensor,
    scale: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    layouts: Sequence[int],
    twice: bool,
) -> list[Tensor]:
    return new_maps(layouts, labels)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    features, labels, _, ctx.twice = inputs
    ctx.layouts = [number for x in features for number in layout_of(x)]
    ctx.save_for_backward(labels, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _counts: Tensor | None) -> tuple[Any, None, None, None]:
    labels, counts = ctx.saved_tensors
    grads = prototype_pool_bwd(grad, None, labels, counts, ctx.layouts, ctx.twice)
    return grads, None, None, None


_prototype_pool.register_autograd(_backward, setup_context=_setup_context)


def served(features: Sequence[Tensor], labels: Tensor, num_classes: int) -> bool:
    """True if the kernels take these features and labels; never if the definition rejects them.

    Raises:
        ValueError: the features are no floats, or features and labels are on several devices.
    """
    for x in features:
        if not x.is_floating_point():
            raise ValueError(f"features must be floats, got {x.dtype}")
        if x.device != labels.device:
            raise ValueError(
                f"expected features and labels on one device, got {x.device} and {labels.device}"
            )
    fitting = all(x.ndim == 5 and x.shape[1] == len(labels) and x.numel() > 0 for x in features)
    return (
        fitting
        and labels.ndim == 3
        and labels.numel() > 0
        and not (labels.is_floating_point() or labels.is_complex())
        and 1 <= num_classes <= MAX_CLASSES
        and all(runs_on(x) and x.dtype in DTYPES for x in features)
    )


def as_integers(labels: Tensor) -> Tensor:
    """The labels in a dtype that kernels load: booleans become bytes."""
    return labels.byte() if labels.dtype == torch.bool else labels


def masked_prototype_pools(
    features: Sequence[Tensor], labels: Tensor, num_classes: int, divide: Divide = "once"
) -> list[tuple[Tensor, Tensor]]:
    """:func:`masked_prototype_pool` of several feature maps in one launch.

    Args:
        features: maps ``[M, B, C, h, w]`` of the same B; M, C, size, dtype and memory order may
            differ, one dtype and order serve best. Levels of an encoder, or networks.
        labels: see :func:`masked_prototype_pool`, like the rest.
        num_classes: K.
        divide: ``"once"`` or ``"twice"``.

    Returns:
        ``(prototypes, counts)`` of each map.

    Raises:
        ValueError: a map, the labels or an option does not fit.
    """
    if not features or divide not in ("once", "twice") or not served(features, labels, num_classes):
        return [reference.masked_prototype_pool(x, labels, num_classes, divide) for x in features]
    flat, counts = _prototype_pool(
        list(features), as_integers(labels), num_classes, divide == "twice"
    )
    sizes = sizes_of([x.shape for x in features], num_classes)
    return [
        (part.view(x.shape[0], x.shape[1], num_classes, x.shape[2]), number)
        for x, part, number in zip(features, flat.split(sizes), counts.unbind(), strict=True)
    ]


def masked_prototype_pool(
    features: Tensor, labels: Tensor, num_classes: int, divide: Divide = "once"
) -> tuple[Tensor, Tensor]:
    """Prototype of every class: its mean feature in each sample and modality.

        counts[b, k] = #{p : y[b, p] = k}
        prototypes[m, b, k] = sum_{p : y[b, p] = k} features[m, b, :, p] / max(counts[b, k], 1)

    with y the label map at the features' resolution: ``y[r, c] = labels[floor(r H / h),
    floor(c W / w)]``. The gradient of a pixel is its class's gradient over the class's count;
    pixels of no class get zero. On a GPU results repeat bit by bit, nothing waits for the device,
    and the gradient itself has none. Float32 features are multiplied as sums of two tf32 numbers,
    exact to 2^-23 of each. Float64, empty features and more than 256 classes take the definition.

    Args:
        features: ``[M, B, C, h, w]``, any float dtype. Contiguous pixels or contiguous channels
            are read in place, other strides copied.
        labels: ``[B, H, W]`` integers at full resolution, any strides; values outside
            ``[0, num_classes)``, such as 255, are ignored.
        num_classes: K, at least 1.
        divide: ``"once"`` is the class mean of the papers. ``"twice"`` divides by the count again,
            as the released code does; for comparison with it only.

    Returns:
        ``prototypes [M, B, K, C]`` float32 (float64 for float64 features), zero for a class without
        pixels, and ``counts [B, K]`` int64, in pixels of the level.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, ``divide`` is unknown or ``num_classes``
            not positive.

    Source: RobustSeg, arXiv:2505.12861v1 (hybrid prototype distillation); the second division is
    in ``mmkd/Prototype.py`` of github.com/RobustSeg/RobustSeg at ea9add7.
    """
    ((prototypes, counts),) = masked_prototype_pools([features], labels, num_classes, divide)
    return prototypes, counts
