"""Attention of all tokens of an image to a spatially reduced copy of them.

Source: SegFormer, arXiv:2105.15203, section 3.1 ("efficient self-attention").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastseg.kernels import reduced_attention, split_tokens
from fastseg.kernels.common.stand_ins import are_wanted

from .linear import linear, linear_in_parts
from .norms import normalise
from .parts import NONE, BlockParts

Kernel = SDPBackend | Literal["fastseg"]
OWN: Literal["fastseg"] = "fastseg"
"""The kernels of `fastseg.kernels.reduced_attention`, beside torch's."""


@dataclass(frozen=True)
class AttentionLevel:
    """Attention layers that work on tensors of the same shape.

    Attributes:
        layers: each has an attribute ``backend``, see
        :class:`Attention`.
        queries: ``[N, heads, L, d]``.
        keys: their number S.
    """

    layers: Sequence[Any]
    queries: tuple[int, int, int, int]
    keys: int


def attention(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v``.

    Args:
        q: ``[N, heads, L, d]``.
        k: ``[N, heads, S, d]``.
        v: ``[N, heads, S, d]``.
        backend: which of torch's fused kernels to use; None leaves the choice to torch.

    Returns:
        ``[N, heads, L, d]``.
    """
    # the fused CPU kernel does not pay for few keys: with 16 (128 x 128 images) it is no faster in
    # fp32, and in bf16 forward and backward take two to nine times as long as the plain form
    # an exported network has one form for any number of keys
    few = not torch.compiler.is_exporting() and k.shape[2] <= 64
    if q.device.type == "cpu" and few:
        # the keys are scaled because they are few
        return (q @ (k / math.sqrt(q.shape[3])).transpose(2, 3)).softmax(dim=-1) @ v
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def token_attention(
    queries: Tensor,
    keys_values: Tensor,
    kernel: Kernel | None = None,
    q_bias: Tensor | None = None,
    kv_bias: Tensor | None = None,
) -> Tensor:
    """:func:`attention` of tokens as the linear layers leave them.

    Args:
        queries: ``[N, L, heads, d]``.
        keys_values: ``[N, S, 2, heads, d]``.
        kernel: one of torch's, or `OWN`; None leaves the choice to torch.
        q_bias: in the queries, without a gradient so far, see `.linear`.
        kv_bias: likewise in keys and values.

    Returns:
        ``[N, L, heads, d]``.
    """
    own = isinstance(kernel, str)
    kv: Sequence[Tensor] = (keys_values,)
    if are_wanted(queries):
        queries, *kv = split_tokens(queries, keys_values, q_bias, kv_bias, apart=not own)
    elif not own:
        # taken apart before the axes change places: so the gradients come together without a copy
        kv = keys_values.unbind(2)
    if own:
        return reduced_attention(queries, kv[0])
    assert not isinstance(kernel, str)
    k, v = kv
    out = attention(queries.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), kernel)
    return out.transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention of all tokens to the spatially reduced tokens.

    Attributes:
        backend: kernel of :func:`token_attention`, set by :mod:`fastseg.engine.speed.attention`.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.backend: Kernel | None = None
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, again: Tensor | None = None, parts: BlockParts = NONE
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[N, h, w, C]`` to the same shape, and the bias in them, see :func:`linear`.

        Args:
            x: the tokens, of which the queries are made.
            again: the same tokens for keys and values, where their gradient is of its own.
            parts: stand-ins for parameters.
        """
        n, h, w, c = x.shape
        q, q_bias = linear_in_parts(self.q, x, parts.q)
        x = x if again is None else again
        if self.reduction > 1:
            reduced = self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = normalise(self.norm, reduced, parts.reduced)
        kv, kv_bias = linear_in_parts(self.kv, x, parts.kv)
        q, kv = q.view(n, h * w, self.heads, -1), kv.view(n, -1, 2, self.heads, c // self.heads)
        out = token_attention(q, kv, self.backend, q_bias, kv_bias)
        return linear(self.proj, out.reshape(n, h, w, c), parts.proj)
