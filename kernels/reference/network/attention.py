"""Attention of all tokens to a spatially reduced copy of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..precision import upcast, without_autocast


@without_autocast
def reduced_attention(queries: Tensor, keys_values: Tensor) -> Tensor:
    """Multi-head attention of L tokens to S reduced ones, per image n and head h.

        out[n, l, h] = sum_s w[l, s] v[n, s, h]
        w[l, s] = exp(a[l, s]) / sum_t exp(a[l, t]),  a[l, s] = q[n, l, h] . k[n, s, h] / sqrt(d)

    Both arguments are as the linear layers in front leave them, and the result as the one behind
    takes it: the heads of a token lie next to each other. The largest score of a token is taken off
    before the exponential, so that any finite score is one.

    Args:
        queries: ``[N, L, heads, d]``, any float dtype.
        keys_values: ``[N, S, 2, heads, d]``, keys before values; the same dtype and device.

    Returns:
        ``[N, L, heads, d]`` in the dtype of the queries; no images or no queries give an empty
        tensor.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or there is no key or no channel.

    Source: SegFormer, arXiv:2105.15203, section 3.1 ("efficient self-attention").
    """
    check_tokens(queries, keys_values)
    q = upcast(queries).transpose(1, 2)
    k, v = (x.transpose(1, 2) for x in upcast(keys_values).unbind(2))
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(queries.shape[3]), dim=-1)
    return (weights @ v).transpose(1, 2).to(queries.dtype)


def check_tokens(queries: Tensor, keys_values: Tensor) -> None:
    """Refuse what no attention is defined for.

    Raises:
        ValueError: see :func:`reduced_attention`.
    """
    if (
        queries.ndim != 4
        or keys_values.ndim != 5
        or keys_values.shape[1] < 1
        or queries.shape[3] < 1
        or keys_values.shape != (len(queries), keys_values.shape[1], 2, *queries.shape[2:])
    ):
        raise ValueError(
            "expected queries [N, L, heads, d] and keys and values [N, S, 2, heads, d], S and d at "
            f"least 1, got {list(queries.shape)} and {list(keys_values.shape)}"
        )
    if (
        not queries.is_floating_point()
        or queries.dtype != keys_values.dtype
        or queries.device != keys_values.device
    ):
        raise ValueError(
            "expected queries, keys and values of one float dtype on one device, got "
            f"{queries.dtype} on {queries.device} and {keys_values.dtype} on {keys_values.device}"
        )


def split_tokens(
    queries: Tensor,
    keys_values: Tensor,
    q_bias: Tensor | None = None,
    kv_bias: Tensor | None = None,
    apart: bool = True,
) -> tuple[Tensor, ...]:
    """Queries, keys and values as attention takes them.

        q, k, v = queries, keys_values[:, :, 0], keys_values[:, :, 1]

    Args:
        queries: ``[N, L, heads, d]``.
        keys_values: ``[N, S, 2, heads, d]``, keys before values.
        q_bias: ``[C]`` with C = heads d, what the queries have in them already as a constant. It
            changes no value; its gradient is that of the queries, summed over the tokens.
        kv_bias: ``[2 C]``, likewise that of keys and values.
        apart: give keys and values apart.

    Returns:
        ``(queries, keys, values)``, keys and values ``[N, S, heads, d]``; or
        ``(queries, keys_values)``.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    check_tokens(queries, keys_values)
    # zeros that have the gradients of the biases
    if q_bias is not None:
        queries = queries + (q_bias - q_bias.detach()).to(queries.dtype).view(queries.shape[2:])
    if kv_bias is not None:
        zeros = (kv_bias - kv_bias.detach()).to(keys_values.dtype)
        keys_values = keys_values + zeros.view(keys_values.shape[2:])
    return queries, *(keys_values.unbind(2) if apart else (keys_values,))
