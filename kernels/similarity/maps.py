"""Launches of the kernels of prototype similarity, for feature maps of any number of levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.feature_maps import FeatureMaps, group_maps, layout_of, new_maps, starts_of
from ..common.switch import UP
from ..common.tiles import Maps
from ..prototypes.pool import sizes_of
from .cosine_kernels import (
    Cosines,
    Gradients,
    _prototype_similarity_bwd_kernel,
    _prototype_similarity_fwd_kernel,
)
from .pull_kernels import (
    Projections,
    _prototype_similarity_project_kernel,
    _prototype_similarity_pull_kernel,
)

MAX_CHANNELS = 4096  # the projection holds all of them
# at least, as far as there are pixels: some for each of the 132 multiprocessors of an H200
_PROGRAMS = 512

Shapes = Sequence[Sequence[int]]


def tiles(channels_last: bool) -> dict[str, int]:
    """Tile of the kernels that go from pixel to pixel, sixteen elements for a thread."""
    pixels, warps = (64, 4) if channels_last else (32, 2)
    return {"BLOCK_P": pixels, "BLOCK_C": 32, "num_warps": warps}


def tiles_pull(num_classes: int, channels: Sequence[int], dtype: torch.dtype) -> dict[str, int]:
    """Tile of the weighted sums; its columns are channels of one modality."""
    block_k = max(16, triton.next_power_of_2(num_classes))
    wide = math.gcd(*channels) % 64 == 0 and block_k <= 64 and dtype != torch.float32
    return {
        "BLOCK_K": block_k,
        "BLOCK_P": 64 if block_k <= 64 else 32,
        "BLOCK_N": 64 if wide else 32,
        # with more warps than blocks of 16 classes some would compute the same products
        "num_warps": 2 if block_k <= 32 else 4 if block_k <= 128 else 8,
        "num_stages": 3,
    }


def pixels_of(shapes: Shapes) -> list[int]:
    """Numbers of elements of the similarity maps of features ``[M, B, C, h, w]``."""
    return [m * b * h * w for m, b, _, h, w in shapes]


def similarity_maps(
    features: Sequence[Tensor], labels: Tensor, prototypes: Tensor, num_classes: int, kept: int
) -> tuple[Tensor, Tensor]:
    """Similarity maps ``[M, B, h, w]`` of all features, flat and in a row.

    Args:
        features: maps ``[M, B, C, h, w]``.
        labels: ``[B, H, W]``.
        prototypes: ``[M, B, K, C]`` of every map, flat and in a row.
        num_classes: K.
        kept: how many maps, the first ones, will have a backward.

    Returns:
        The maps, and one over the length of each pixel of the kept ones, likewise.
    """
    shapes = [x.shape for x in features]
    sizes = pixels_of(shapes)
    similarities = prototypes.new_empty(sum(sizes))
    inverses = prototypes.new_empty(sum(sizes[:kept]))
    for maps in group_maps(features, starts_of(sizes_of(shapes, num_classes))):
        geometry, together, programs = _by_pixels(maps)
        keep = tuple(int(rank < kept) for rank in maps.ranks)
        with on_device_of(labels):
            _prototype_similarity_fwd_kernel[(programs,)](
                geometry,
                Cosines(
                    together=together, out=maps.outs, place=_of(maps, starts_of(sizes)), keep=keep
                ),
                labels, prototypes, similarities, inverses,
                *labels.shape, *labels.stride(), num_classes,
                STRIDED=maps.strided(labels), CHANNELS_LAST=maps.channels_last, VEC=maps.vec,
                **tiles(maps.channels_last),
            )  # fmt: skip
    return similarities, inverses


def similarity_gradients(
    grad: Tensor,
    scale: Tensor | None,
    features: Sequence[Tensor],
    labels: Tensor,
    similarities: Tensor,
    inverses: Tensor,
    prototypes: Tensor,
    counts: Tensor | None,
    num_classes: int,
    through: bool,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of features and prototypes from that of the similarity maps.

    Args:
        grad: flat, of the maps of the features.
        scale: a factor of the gradients of the features, or None.
        features: maps ``[M, B, C, h, w]``.
        labels: ``[B, H, W]``.
        similarities: flat maps; those of others may follow.
        inverses: one over the length of each pixel.
        prototypes: flat; those of others may follow.
        counts: ``[N, B, K]`` of prototypes that are the means of the features, which get their part
            of that gradient; None for others.
        num_classes: K.
        through: compute the gradient of the prototypes.

    Returns:
        The features' gradients, and the prototypes': flat, over the counts if there are any, empty
        if it was not asked for.
    """
    shapes = [x.shape for x in features]
    sizes, places = sizes_of(shapes, num_classes), starts_of(pixels_of(shapes))
    directions = prototypes.new_empty(sum(sizes))
    shares = prototypes.new_empty(sum(sizes) if through else 0)
    grads = new_maps([number for x in features for number in layout_of(x)], labels)
    for maps in group_maps(features, starts_of(sizes)):
        sums = None
        if through:
            sums = _pull(maps, labels, grad, inverses, places, num_classes)
        _project(maps, prototypes, counts, sums, directions, shares, num_classes)
        geometry, together, programs = _by_pixels(maps)
        with on_device_of(labels):
            _prototype_similarity_bwd_kernel[(programs,)](
                geometry,
                Gradients(
                    together=together, out=maps.outs, place=_of(maps, places),
                    grads_ptr=_of(maps, grads),
                ),
                labels, grad, scale, similarities, inverses, directions, shares,
                *labels.shape, *labels.stride(), num_classes,
                STRIDED=maps.strided(labels), CHANNELS_LAST=maps.channels_last, VEC=maps.vec,
                HAS_SCALE=scale is not None, HAS_SHARES=through and counts is not None, UP=UP,
                **tiles(maps.channels_last),
            )  # fmt: skip
    return grads, shares


def _of(maps: FeatureMaps, values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(values[rank] for rank in maps.ranks)


def _by_pixels(maps: FeatureMaps) -> tuple[Maps, tuple[int, ...], int]:
    """The maps for programs of some pixels, modalities of a program, number of programs."""
    # labels are looked up once for modalities that together have 128 channels
    together = tuple(
        min(m, max(1, 128 // c)) for m, c in zip(maps.modalities, maps.channels, strict=True)
    )
    groups = tuple(triton.cdiv(m, n) for m, n in zip(maps.modalities, together, strict=True))
    geometry, programs = maps.geometry_of(groups, tiles(maps.channels_last)["BLOCK_P"])
    return geometry, together, programs


def _chunks(maps: FeatureMaps, num_classes: int) -> tuple[dict[str, int], tuple[int, ...], int]:
    """Tile of the sums, how many share the pixels of each map, pixels of a program."""
    tile = tiles_pull(num_classes, maps.channels, maps.dtype)
    blocks = [triton.cdiv(c, tile["BLOCK_N"]) for c in maps.channels]
    number = tuple(m * n for m, n in zip(maps.modalities, blocks, strict=True))
    return tile, number, maps.chunk_of(number, tile["BLOCK_P"], 2048, _PROGRAMS)


def _pull(
    maps: FeatureMaps,
    labels: Tensor,
    grad: Tensor,
    inverses: Tensor,
    places: Sequence[int],
    num_classes: int,
) -> Tensor:
    """A_k of every chunk of pixels."""
    tile, number, chunk = _chunks(maps, num_classes)
    geometry, programs = maps.geometry_of(number, chunk)
    sums = grad.new_empty((programs, num_classes, tile["BLOCK_N"]))
    with on_device_of(labels):
        _prototype_similarity_pull_kernel[(programs,)](
            geometry, _of(maps, places), labels, grad, inverses, sums,
            *labels.shape, *labels.stride(), num_classes,
            STRIDED=maps.strided(labels), CHANNELS_LAST=maps.channels_last, VEC=maps.vec,
            CHUNK=chunk, SPLIT=maps.dtype == torch.float32, **tile,
        )  # fmt: skip
    return sums


def _project(
    maps: FeatureMaps,
    prototypes: Tensor,
    counts: Tensor | None,
    sums: Tensor | None,
    directions: Tensor,
    shares: Tensor,
    num_classes: int,
) -> None:
    """P^ and, if there are sums, G_k, over the counts if there are any."""
    tile, number, chunk = _chunks(maps, num_classes)
    splits = [triton.cdiv(n, chunk) for n in maps.pixels]
    programs = [m * maps.batch * num_classes for m in maps.modalities]
    most_c, most_s = (triton.next_power_of_2(max(n)) for n in (maps.channels, splits))
    with on_device_of(prototypes):
        _prototype_similarity_project_kernel[(sum(programs),)](
            Projections(
                start=starts_of(programs), C=maps.channels, splits=tuple(splits),
                first=maps.geometry_of(number, chunk)[0].start, tiles=number,
                rank=maps.ranks, out=maps.outs,
            ),
            prototypes, counts, sums, directions, shares, maps.batch, num_classes,
            SPLITS=most_s, BLOCK_S=min(16, most_s, max(1, 4096 // most_c)),
            BLOCK_N=tile["BLOCK_N"], BLOCK_C=most_c, HAS_SUMS=sums is not None,
            OWN=counts is not None, num_warps=4,
        )  # fmt: skip
