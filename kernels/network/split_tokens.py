"""Queries, keys and values on their way to attention, and their gradients by one launch.

    q, k, v = queries, keys_values[:, :, 0], keys_values[:, :, 1]
    dkeys_values[:, :, 0] = dk,   dkeys_values[:, :, 1] = dv
    dq_bias = sum_nl dq,   dkv_bias = sum_ns dkeys_values

Left to autograd, the gradients of keys and values are put together by a launch, and those of both
layers' biases are a pass over the tokens and a launch each. Here one launch reads each gradient
once, writes keys and values together, and leaves the sums in parts, see
:mod:`..common.stand_ins`. Forward nothing is done.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..common.device import on_device_of
from ..common.row_tiles import MAX_CHANNELS, summing_programs, summing_tile
from ..common.stand_ins import are_wanted, with_gradient_of
from ..common.switch import DEVICES
from ..reference.network.attention import check_tokens
from .split_tokens_kernels import Rows, _split_tokens_bwd_kernel

Gradients = tuple[Tensor, Tensor, Tensor]


def _rows(x: Tensor) -> Tensor:
    """Tokens ``[N, L, heads, d]`` as rows of contiguous channels; a copy where they are none."""
    rows = x.reshape(-1, x.shape[2] * x.shape[3])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _memory(q: Tensor, k: Tensor, join: bool, sum_q: bool, sum_kv: bool) -> Gradients:
    """Of keys and values together, and of both sums' parts; empty where they are not wanted."""
    n, keys, heads, d = k.shape
    channels = heads * d
    parts = [
        x.new_empty(
            (summing_programs(len(x) * x.shape[1], channels)[0] if wanted else 0, 1, width),
            dtype=torch.float32,
        )
        for x, wanted, width in ((q, sum_q, channels), (k, sum_kv, 2 * channels))
    ]
    return k.new_empty((n, keys, 2, heads, d) if join else 0), parts[0], parts[1]


def launch_backward(
    q: Tensor, k: Tensor, v: Tensor, join: bool, sum_q: bool, sum_kv: bool
) -> Gradients:
    """The backward launch, of the gradients of queries ``[N, L, ..]``, keys and values."""
    joined, of_q, of_kv = _memory(q, k, join, sum_q, sum_kv)
    channels = k.shape[2] * k.shape[3]
    pairs = joined.view(-1, 2, channels)
    # rows, where they are copied to, and the parts of their sum
    every: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    if sum_q:
        every.append((_rows(q), None, of_q[:, 0]))
    if join or sum_kv:
        for i, x in enumerate((k, v)):
            parts = of_kv[:, 0, i * channels : (i + 1) * channels] if sum_kv else None
            every.append((_rows(x), pairs[:, i] if join else None, parts))
    sizes = [summing_programs(*x.shape) for x, *_ in every]
    rows, copies, parts_of = zip(*every, strict=True)
    nothing = of_q.new_empty(1)  # stands in for what is not written
    start = (0, *accumulate(programs for programs, _ in sizes))
    with on_device_of(k):
        _split_tokens_bwd_kernel[(start[-1],)](
            Rows(
                start, tuple(map(len, rows)), tuple(tiles for _, tiles in sizes),
                tuple(x.stride(0) for x in rows), rows,
                tuple(nothing if y is None else y for y in copies),
                tuple(nothing if y is None else y for y in parts_of),
                tuple(0 if y is None else y.stride(0) for y in parts_of),
            ),
            channels, 2 * channels, COPIES=tuple(y is not None for y in copies),
            SUMS=tuple(y is not None for y in parts_of), **summing_tile(channels),
        )  # fmt: skip
    return joined, of_q, of_kv


@torch.library.custom_op("fastseg::split_tokens_bwd", mutates_args=(), device_types=DEVICES)
def _split_tokens_bwd(
    q: Tensor, k: Tensor, v: Tensor, join: bool, sum_q: bool, sum_kv: bool
) -> Gradients:
    return launch_backward(q, k, v, join, sum_q, sum_kv)


@_split_tokens_bwd.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, join: bool, sum_q: bool, sum_kv: bool) -> Gradients:
    return _memory(q, k, join, sum_q, sum_kv)


class _Split(torch.autograd.Function):
    """Other names of the tokens, where their gradients meet."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys_values: Tensor,
        of_queries: Tensor | None,
        of_keys_values: Tensor | None,
        apart: bool,
    ) -> tuple[Tensor, ...]:
        ctx.apart = apart
        kv = keys_values.detach()
        return queries.detach(), *(kv.unbind(2) if apart else (kv,))

    @staticmethod
    def backward(ctx: Any, q: Tensor, *kv: Tensor) -> tuple[Tensor | None, ...]:
        sum_q, sum_kv = ctx.needs_input_grad[2:4]
        k, v = kv if ctx.apart else kv[0].unbind(2)
        joined, of_q, of_kv = _split_tokens_bwd(q, k, v, ctx.apart, sum_q, sum_kv)
        return (
            q, joined if ctx.apart else kv[0],
            of_q if sum_q else None, of_kv if sum_kv else None, None,
        )  # fmt: skip


def split_tokens(
    queries: Tensor,
    keys_values: Tensor,
    q_bias: Tensor | None = None,
    kv_bias: Tensor | None = None,
    apart: bool = True,
) -> tuple[Tensor, ...]:
    """Queries, keys and values as attention takes them; see ``reference.split_tokens``.

    Results are views. On a GPU in eager mode their gradients are put together, and the biases'
    summed, by one launch; float64, more than 4096 channels and empty tensors take the definition.

    Args:
        queries: ``[N, L, heads, d]``.
        keys_values: ``[N, S, 2, heads, d]``, keys before values.
        q_bias: ``[C]`` with C = heads d, what the queries have in them already as a constant, or
            its stand-in ``[P, 1, C]``, see :mod:`fastseg.kernels.common.stand_ins`. It changes no
            value; its gradient is that of the queries, summed over the tokens. None for none.
        kv_bias: ``[2 C]``, or ``[P, 1, 2 C]``, likewise that of keys and values.
        apart: give keys and values apart.

    Returns:
        ``(queries, keys, values)``, keys and values ``[N, S, heads, d]``; or
        ``(queries, keys_values)``. Not to be changed in place.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    check_tokens(queries, keys_values)
    channels = queries.shape[2] * queries.shape[3]
    # asked first: a question about sizes would bind those of an exported graph
    served = are_wanted(queries) and queries.numel() > 0 and channels <= MAX_CHANNELS
    if q_bias is not None and not (served and _fits(q_bias, queries, channels)):
        queries = with_gradient_of(queries.flatten(2), q_bias).view(queries.shape)
        q_bias = None
    if kv_bias is not None and not (served and _fits(kv_bias, keys_values, channels)):
        shape = keys_values.shape
        keys_values = with_gradient_of(keys_values.flatten(2), kv_bias).view(shape)
        kv_bias = None
    learns = queries.requires_grad or keys_values.requires_grad
    if not (served and learns and (apart or q_bias is not None or kv_bias is not None)):
        return reference.split_tokens(queries, keys_values, apart=apart)
    found: tuple[Tensor, ...] = _Split.apply(  # type: ignore[no-untyped-call]
        queries, keys_values, q_bias, kv_bias, apart
    )
    return found


def _fits(stand_in: Tensor, x: Tensor, channels: int) -> bool:
    """True if it has as many parts as the kernel leaves."""
    parts = summing_programs(len(x) * x.shape[1], channels)[0]
    return stand_in.shape == (parts, 1, x.shape[2:].numel())
