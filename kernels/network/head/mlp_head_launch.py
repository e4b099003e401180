"""Launches of the head's kernels, on maps with the channels last in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ...common.device import on_device_of
from ...common.switch import UP
from .mlp_head_bwd_kernels import (
    _head_bwd_maps_kernel,
    _head_bwd_reduce_kernel,
    _head_bwd_sums_kernel,
    _head_bwd_weights_kernel,
)
from .mlp_head_fwd_kernels import (
    _head_frozen_kernel,
    _head_logits_kernel,
    _head_statistics_kernel,
    _head_sum_kernel,
)
from .upsampling import channels_last, levels_of, new_map

MAX_WIDTH = 256  # channels of the first level, or classes: a tile holds all of them
# chunks of pixels at most: each costs a row of the sums
_CHUNKS_FWD, _CHUNKS_BWD = 512, 32
_PIXELS = 32  # of a tile of the backward sums


def _block(number: int, most: int = MAX_WIDTH) -> int:
    """Length of an axis of a tile that is multiplied."""
    return max(16, min(most, int(triton.next_power_of_2(number))))


def _product(x: Tensor) -> dict[str, object]:
    """How a kernel multiplies in the dtype of a map."""
    return {"DOT": "tf32x3" if x.dtype == torch.float32 else "tf32", "UP": UP}


def fused_sum(
    levels: Sequence[Tensor], first: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The map before the BatchNorm, and the statistics of chunks of its pixels.

    These are mean and variance ``[chunks, 2, E]``, and the numbers of pixels ``[chunks]``.
    """
    levels = [channels_last(x) for x in levels]
    first, weight = channels_last(first), weight.contiguous()
    b, c, *size = first.shape
    e = weight.shape[0]
    out = new_map(b, size, e, levels[0])
    lines = b * size[0]
    chunks, lines_each = chunks_fwd(lines)
    rows = out.new_empty((chunks, 2, e), dtype=torch.float32)
    counts = out.new_empty((chunks,), dtype=torch.float32)
    # large tiles of float32, or of wide levels, do not fit into the registers
    block_p, block_c = 16, _block(c)
    block_e = _block(e, (64 if out.dtype == torch.float32 else 128) // (1 + (block_c > 32)))
    tiles, blocks = triton.cdiv(size[1], block_p), triton.cdiv(e, block_e)
    with on_device_of(out):
        _head_sum_kernel[(chunks * blocks,)](
            levels_of(levels, size), first, weight, out, rows, counts, lines, lines_each, *size, e,
            c, tiles, blocks, BLOCK_P=block_p, BLOCK_E=block_e, BLOCK_C=block_c, **_product(out),
            num_warps=4,
        )  # fmt: skip
    return out, rows, counts


def combined_statistics(
    rows: Tensor, counts: Tensor, running: Sequence[Tensor | None], momentum: float
) -> Tensor:
    """Statistics ``[3, E]`` of all pixels: mean, variance and number.

    ``rows`` are mean and variance of parts, ``[R, 2, E]``, ``counts`` their numbers of pixels, of
    any distance in memory from part to part. ``running`` are mean, variance and the number of
    batches, which are updated, or three None.
    """
    count, _, e = rows.shape
    out = rows.new_empty((3, e))
    block_e = 16
    with on_device_of(rows):
        _head_statistics_kernel[(triton.cdiv(e, block_e),)](
            rows, counts, out, *running, count, rows.stride(0), counts.stride(0), e, momentum,
            HAS_RUNNING=running[0] is not None, BLOCK_S=64, BLOCK_E=block_e, UP=UP, num_warps=4,
        )  # fmt: skip
    return out


def classified(
    x: Tensor,
    stats: Tensor,
    norm: Sequence[Tensor],
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Logits ``[B, K, h, w]`` of the map before the BatchNorm; norm are its weight and bias."""
    b, e, *size = x.shape
    k = len(weight)
    out = new_map(b, size, k, x)
    block_k = _block(k)
    block_p, block_e, warps = (64, 64, 4) if block_k <= 64 else (32, 32, 8)
    if block_k > 64 and x.dtype == torch.float32:
        block_p = block_e = 16
    pixels = size[0] * size[1]
    tiles = triton.cdiv(pixels, block_p)
    with on_device_of(x):
        _head_logits_kernel[(b * tiles,)](
            x, stats, *norm, factor, weight, bias, out, pixels, e, k, tiles, eps,
            HAS_FACTOR=factor is not None, BLOCK_P=block_p, BLOCK_E=_block(e, block_e),
            BLOCK_K=block_k, **_product(x), num_warps=warps,
        )  # fmt: skip
    return out


def frozen(
    levels: Sequence[Tensor], first: Tensor, weight: Tensor, classifier: Tensor, bias: Tensor
) -> Tensor:
    """Logits of a head whose BatchNorm is part of its projections."""
    levels = [channels_last(x) for x in levels]
    first, weight = channels_last(first), weight.contiguous()
    b, c, *size = first.shape
    e, k = weight.shape[0], len(classifier)
    out = new_map(b, size, k, levels[0])
    block_p, block_k = 16, _block(k)
    # prefetched tiles of float32 do not fit into the shared memory, nor large ones of many classes
    block_e, stages = (32, 1) if out.dtype == torch.float32 else (128 if block_k <= 64 else 32, 3)
    tiles = triton.cdiv(size[1], block_p)
    with on_device_of(out):
        _head_frozen_kernel[(b * size[0] * tiles,)](
            levels_of(levels, size), first, weight, classifier.contiguous(), bias, out, *size, e,
            c, k, tiles, BLOCK_P=block_p, BLOCK_E=_block(e, block_e), BLOCK_C=_block(c),
            BLOCK_K=block_k, **_product(out), num_warps=4,
            num_stages=stages,
        )  # fmt: skip
    return out


def chunks_fwd(lines: int) -> tuple[int, int]:
    """Chunks of the lines of all samples, and lines of each but the last."""
    each = triton.cdiv(lines, _CHUNKS_FWD)
    return triton.cdiv(lines, each), each


def chunks_bwd(batch: int, pixels: int) -> tuple[int, int]:
    """Chunks of all samples, and pixels of each but the last of a sample."""
    of_sample = max(1, _CHUNKS_BWD // batch)
    chunk = triton.cdiv(triton.cdiv(pixels, of_sample), _PIXELS) * _PIXELS
    return batch * triton.cdiv(pixels, chunk), chunk


def backward_sums(
    grad: Tensor,
    x: Tensor,
    first: Tensor,
    stats: Tensor,
    norm: Sequence[Tensor],
    factor: Tensor | None,
    weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums of the gradient, and what follows from them.

    Returns:
        Sums ``[2, E]``; products ``[chunks, K + 2 C, E]`` and columns ``[chunks, K + C]`` of each
        chunk; the gradients of the BatchNorm's weight and bias.
    """
    grad, first = channels_last(grad), channels_last(first)
    b, e, h, w = x.shape
    c, k, pixels = first.shape[1], len(weight), h * w
    block_k, block_c = _block(k), _block(c)
    rows = max(block_k, block_c)
    block_e = _block(e, 64 if rows <= 32 else 32 if rows <= 64 else 16)
    # large or prefetched tiles of float32 do not fit into the registers beside the sums
    block_p, step_k, stages = _PIXELS, block_k, 3
    if x.dtype == torch.float32:
        block_p, step_k, stages = _PIXELS // 2, min(block_k, 16 if 32 < rows <= 64 else 32), 1
    parts, chunk = chunks_bwd(b, pixels)
    sums = x.new_empty((parts, 2, e), dtype=torch.float32)
    products = x.new_empty((parts, k + 2 * c, e), dtype=torch.float32)
    columns = x.new_empty((parts, k + c), dtype=torch.float32)
    out = x.new_empty((2, e), dtype=torch.float32)
    d_norm_weight, d_norm_bias = (torch.empty_like(y) for y in norm)
    blocks = triton.cdiv(e, block_e)
    with on_device_of(x):
        _head_bwd_sums_kernel[(parts * blocks,)](
            grad, x, first, stats, *norm, factor, weight, sums, products, columns, pixels, e, c, k,
            parts // b, chunk, blocks, eps, HAS_FACTOR=factor is not None, BLOCK_P=block_p,
            BLOCK_E=block_e, BLOCK_C=block_c, BLOCK_K=block_k, STEP_K=step_k, **_product(x),
            num_warps=8, num_stages=stages,
        )  # fmt: skip
        _head_bwd_reduce_kernel[(triton.cdiv(e, 32),)](
            sums, stats, out, d_norm_weight, d_norm_bias, parts, e, eps, BLOCK_S=32, BLOCK_E=32,
            UP=UP, num_warps=4,
        )  # fmt: skip
    return out, products, columns, d_norm_weight, d_norm_bias


def backward_maps(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    sums: Tensor,
    norm: Sequence[Tensor],
    factor: Tensor | None,
    weight: Tensor,
    projection: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the map before the BatchNorm and of the first level."""
    grad, projection = channels_last(grad), projection.contiguous()
    b, e, *size = x.shape
    c, k = projection.shape[1], len(weight)
    dx, d_first = new_map(b, size, e, x), new_map(b, size, c, x)
    block_k, block_c = _block(k), _block(c)
    wide = max(block_k, block_c) > 64
    block_p, block_e, warps, stages = (32, 32, 4, 2) if wide else (64, 32, 4, 3)
    # large tiles of float32 do not fit into the registers
    if x.dtype == torch.float32:
        block_p, block_e, warps = (16, 16, 8) if wide else (16, 32, 4)
    pixels = size[0] * size[1]
    tiles = triton.cdiv(pixels, block_p)
    with on_device_of(x):
        _head_bwd_maps_kernel[(b * tiles,)](
            grad, x, stats, sums, *norm, factor, weight, projection, dx, d_first, pixels, e, c, k,
            tiles, eps, HAS_FACTOR=factor is not None, BLOCK_P=block_p, BLOCK_E=_block(e, block_e),
            BLOCK_C=block_c, BLOCK_K=block_k, **_product(x), num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return dx, d_first


def backward_weights(
    products: Tensor,
    columns: Tensor,
    stats: Tensor,
    sums: Tensor,
    norm_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    projection: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the classifier, its bias and the first level's projection."""
    (e, c), k = projection.shape, len(weight)
    d_weight = torch.empty((k, e), dtype=weight.dtype, device=weight.device)
    d_projection = torch.empty((e, c), dtype=projection.dtype, device=weight.device)
    d_bias = torch.empty((k,), dtype=bias.dtype, device=weight.device)
    block_r, block_e = 16, 32
    with on_device_of(products):
        _head_bwd_weights_kernel[(triton.cdiv(e, block_e), triton.cdiv(k + c, block_r))](
            products, columns, stats, sums, norm_weight, d_weight, d_bias, d_projection,
            len(products), e, c, k, eps, BLOCK_R=block_r, BLOCK_E=block_e, UP=UP, num_warps=4,
        )  # fmt: skip
    return d_weight, d_bias, d_projection
