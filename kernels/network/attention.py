"""Attention with spatial reduction: no attention matrix in memory, gradients without atomics.

    s = q k^T / sqrt(d),  w = softmax(s),  o = w v
    dv = w^T do,  ds = w * (do v^T - delta),  delta = sum_d o * do,  dq = ds k / sqrt(d),
    dk = ds^T q / sqrt(d)

There are up to 65536 queries and few keys, so the backward pass is two kernels, one over blocks of
queries for dq and one over blocks of keys for dk and dv. Where the blocks of keys are too few to
fill a GPU the latter is split over ranges of queries, whose sums a third kernel adds in their
order. Scores are computed again in both; of the forward pass the result and, per query and head,
the logarithm of its sum of exponentials stay. Queries, keys and values are read where the linear
layers left them, and gradients are written as these take them.

Sources: online softmax, arXiv:1805.02867; tiles and the logarithms kept for the backward pass,
arXiv:2205.14135 and arXiv:2307.08691.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from ..common.device import on_device_of
from ..common.switch import DEVICES, UP
from ..reference.network import attention as definition
from .attention_kernels import (
    _reduced_attention_fwd_kernel,
    _reduced_attention_key_kernel,
    _reduced_attention_query_kernel,
    _reduced_attention_sum_kernel,
)
from .heads import serves

# of the kernel of the keys, at most if it is split: four for each of an H200's 132 multiprocessors
_PROGRAMS = 528
_LEAST_CHUNK = 256
# from token to token: the offsets within a tile fit 32 bits
_LARGEST_STRIDE = 1 << 23

Tile = dict[str, int]


def tiles(dtype: torch.dtype, d: int, precision: str = "ieee") -> dict[str, Tile]:
    """Tiles of the three kernels: queries, keys, warps and stages of the pipeline."""
    if dtype != torch.float32:
        return {
            "fwd": _tile(128, 64, 4, 3),
            "query": _tile(128, 64, 8 if d > 32 else 4, 3),
            # every block of keys reads all queries: the wider it is, the fewer times
            "key": _tile(64, 128, 8, 3) if d > 32 else _tile(32, 128, 4, 3),
        }
    if precision == "tf32":
        return {
            "fwd": _tile(64, 32, 4, 2),
            "query": _tile(64, 32, 4, 2),
            "key": _tile(32, 64, 4, 2),
        }
    # without tensor cores every thread keeps its part of both factors in registers
    return {
        "fwd": _tile(32 if d > 32 else 64, 32, 4, 2),
        "query": _tile(64, 32, 8 if d > 32 else 4, 2),
        "key": _tile(16 if d > 32 else 32, 32, 4, 2),
    }


def _tile(queries: int, keys: int, warps: int, stages: int) -> Tile:
    return {"BLOCK_L": queries, "BLOCK_S": keys, "num_warps": warps, "num_stages": stages}


def _precision(dtype: torch.dtype) -> str:
    """Products of float32 are exact unless torch's may be tf32; others have one precision."""
    short = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if short else "ieee"


def parts_of(n: int, heads: int, length: int, keys: int, tile: Tile) -> tuple[int, int]:
    """Ranges of queries that the kernel of the keys is split over, and their length.

    It depends on the sizes alone, not on the GPU: so does the order of the sums.
    """
    programs = n * heads * triton.cdiv(keys, tile["BLOCK_S"])
    wanted = max(1, _PROGRAMS // programs)
    chunk = max(_LEAST_CHUNK, triton.cdiv(length, wanted))
    chunk = triton.cdiv(chunk, tile["BLOCK_L"]) * tile["BLOCK_L"]
    return triton.cdiv(length, chunk), chunk


def _in_place(x: Tensor) -> Tensor:
    """``x``, or a copy of it where the kernels cannot read it as it lies."""
    fits = x.stride(-1) == 1 and x.stride(1) < _LARGEST_STRIDE
    return x if fits else x.contiguous()


def _options(q: Tensor, keys: int, tile: Tile, precision: str) -> dict[str, Any]:
    return {
        "D": q.shape[3],
        "EVEN_L": q.shape[1] % tile["BLOCK_L"] == 0,
        "EVEN_S": keys % tile["BLOCK_S"] == 0,
        "PRECISION": precision,
        "UP": UP,
        **tile,
    }


def attention_forward(q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
    """The forward launch: the result, and per head and query the logarithm to base 2 of its sum."""
    q, kv = _in_place(q), _in_place(kv)
    n, length, heads, d = q.shape
    precision = _precision(q.dtype)
    tile = tiles(q.dtype, d, precision)["fwd"]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((n, heads, length), dtype=torch.float32, device=q.device)
    with on_device_of(q):
        _reduced_attention_fwd_kernel[(triton.cdiv(length, tile["BLOCK_L"]) * n * heads,)](
            q, kv, out, lse, length, kv.shape[1], heads, *q.stride()[:3], *kv.stride()[:4],
            math.log2(math.e) / math.sqrt(d), **_options(q, kv.shape[1], tile, precision),
        )  # fmt: skip
    return out, lse


def attention_backward(
    grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """The backward launches: gradients of the queries, and of keys and values, contiguous."""
    grad, q, kv = _in_place(grad), _in_place(q), _in_place(kv)
    n, length, heads, d = q.shape
    keys = kv.shape[1]
    precision = _precision(q.dtype)
    tile = tiles(q.dtype, d, precision)
    scale = 1 / math.sqrt(d)
    factor = math.log2(math.e) * scale
    delta = torch.empty_like(lse)
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_kv = torch.empty(kv.shape, dtype=kv.dtype, device=q.device)
    strides = (*q.stride()[:3], *kv.stride()[:4], *grad.stride()[:3])
    parts, chunk = parts_of(n, heads, length, keys, tile["key"])
    sums = grad_kv
    if parts > 1:
        sums = torch.empty((parts, *kv.shape), dtype=torch.float32, device=q.device)
    blocks_l = triton.cdiv(length, tile["query"]["BLOCK_L"])
    blocks_s = triton.cdiv(keys, tile["key"]["BLOCK_S"])
    with on_device_of(q):
        _reduced_attention_query_kernel[(blocks_l * n * heads,)](
            q, kv, out, grad, lse, delta, grad_q, length, keys, heads, *strides, factor, scale,
            **_options(q, keys, tile["query"], precision),
        )  # fmt: skip
        _reduced_attention_key_kernel[(blocks_s * parts * n * heads,)](
            q, kv, grad, lse, delta, sums, n, length, keys, heads, parts, chunk, *strides, factor,
            scale, **_options(q, keys, tile["key"], precision),
        )  # fmt: skip
        if parts > 1:
            _reduced_attention_sum_kernel[(triton.cdiv(grad_kv.numel(), 1024),)](
                sums, grad_kv, grad_kv.numel(), parts, BLOCK=1024, UP=UP, num_warps=4
            )
    return grad_q, grad_kv


@torch.library.custom_op("fastseg::reduced_attention", mutates_args=(), device_types=DEVICES)
def _reduced_attention(q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
    return attention_forward(q, kv)


@_reduced_attention.register_fake
def _(q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
    n, length, heads, _d = q.shape
    lse = q.new_empty((n, heads, length), dtype=torch.float32)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), lse


@torch.library.custom_op("fastseg::reduced_attention_bwd", mutates_args=(), device_types=DEVICES)
def _reduced_attention_bwd(
    grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    return attention_backward(grad, q, kv, out, lse)


@_reduced_attention_bwd.register_fake
def _(grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), kv.new_empty(kv.shape)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _lse: Tensor | None) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = _reduced_attention_bwd(grad, *ctx.saved_tensors)
    return gradients


_reduced_attention.register_autograd(_backward, setup_context=_setup_context)


def reduced_attention(queries: Tensor, keys_values: Tensor) -> Tensor:
    """Multi-head attention of L tokens to S reduced ones; see ``reference.reduced_attention``.

    Heads of 16, 32 and 64 channels have kernels. Products of float32 are float32's, unless torch's
    may be tf32 (``torch.backends.cuda.matmul.allow_tf32`` or the newer ``fp32_precision``): then
    these are, too. Short floats are multiplied as they are and summed in float32; the weights, and
    in the backward pass the gradients of the scores, are rounded to the short dtype in between.

    On a GPU results repeat bit by bit, nothing waits for the device, and the gradient itself has
    none. Float64, other heads and empty tensors take the definition.

    Args:
        queries: ``[N, L, heads, d]``. Whatever has contiguous channels is read in place.
        keys_values: ``[N, S, 2, heads, d]``, likewise, keys before values.

    Returns:
        ``[N, L, heads, d]`` in the dtype of the queries, contiguous.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    definition.check_tokens(queries, keys_values)
    if not serves(queries):
        return definition.reduced_attention(queries, keys_values)
    out: Tensor
    out, _ = _reduced_attention(queries, keys_values)
    return out
