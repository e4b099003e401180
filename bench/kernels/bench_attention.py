"""Attention of every encoder level, both passes, against torch's kernels.

Providers: ``eager`` is the definition, which writes the attention matrix, ``compile`` the
definition under ``torch.compile``; ``cudnn``, ``flash`` and ``efficient`` are torch's kernels, with
the copy that brings the gradients of keys and values together; ``fused`` are ours. The definition
at the full size of level 1 would need several times 2 GB per pass, so the check of all providers is
made with 1/16 of the queries.

The bytes are those of tensors that have to be read and written, once each: forward the queries,
keys, values and the result, backward these, the upstream gradient and three gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error
from fastseg.kernels.reference import reduced_attention

# relative to the largest element
SLACK = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)

Attention = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """One level of an encoder.

    Attributes:
        shape: sizes of the step.
        level: from 0.
        dtype: of the tokens.
    """

    shape: shapes.Shape
    level: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"level {self.level + 1} {self.shape}"

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """``[N, L, heads, d]`` of the queries and ``[N, S, 2, heads, d]`` of keys and values."""
        m, b, c, h, w = self.shape.levels[self.level]
        heads, reduction = HEADS[self.level], REDUCTIONS[self.level]
        keys = (h // reduction) * (w // reduction)
        return (m * b, h * w, heads, c // heads), (m * b, keys, 2, heads, c // heads)


def torchs(backend: str) -> Attention:
    """One of torch's kernels on tokens as the linear layers leave them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernel = getattr(SDPBackend, backend)

    def attention(queries: Tensor, keys_values: Tensor) -> Tensor:
        k, v = (x.transpose(1, 2) for x in keys_values.unbind(2))
        with sdpa_kernel(kernel):
            out = torch.nn.functional.scaled_dot_product_attention(queries.transpose(1, 2), k, v)
        return out.transpose(1, 2)

    return attention


def providers() -> dict[str, Attention]:
    """Implementations that can run here, by the provider's name."""
    found: dict[str, Attention] = {"eager": reduced_attention}
    if shapes.ON_GPU:
        from fastseg.kernels.network.attention import reduced_attention as fused

        found["fused"] = fused
        found["cudnn"] = torchs("CUDNN_ATTENTION")
        found["efficient"] = torchs("EFFICIENT_ATTENTION")
    found["flash"] = torchs("FLASH_ATTENTION")
    found["compile"] = torch.compile(reduced_attention, dynamic=False)
    return found


PROVIDERS = providers()


def rows() -> list[tuple[Case, str, str]]:
    """Case, passes and provider: the levels of the first size, then level 1 in other ways."""
    first, *others = shapes.GRID
    short, *full = shapes.DTYPES
    levels = [Case(first, level, short) for level in range(4)]
    more = [Case(first, 0, dtype) for dtype in full]
    more += [Case(shape, 0, short) for shape in others if shape.modalities == first.modalities]
    found = [(levels[0], "fwd+bwd", provider) for provider in PROVIDERS]
    found += [(levels[0], "fwd", provider) for provider in PROVIDERS if provider != "compile"]
    for case in (*levels[1:], *more):
        # the definition compiles anew for every size, and at others than the first needs too much
        left_out = ["compile"] if case.shape == first else ["compile", "eager"]
        if shapes.ON_GPU and case.dtype == torch.float32:
            left_out += ["flash", "cudnn"]  # which have no float32
        found += [(case, "fwd+bwd", name) for name in PROVIDERS if name not in left_out]
    return found


def inputs(case: Case, part: int = 1) -> list[Tensor]:
    """Queries, or so many of them, keys and values, and the upstream gradient."""
    generator = torch.Generator(shapes.DEVICE).manual_seed(0)
    (n, length, heads, d), keys = case.sizes
    queries = (n, max(1, length // part), heads, d)
    return [
        torch.randn(size, generator=generator, device=shapes.DEVICE).to(case.dtype)
        for size in (queries, keys, queries)
    ]


def both_ways(attention: Attention, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The result, and the gradients of queries and of keys and values."""
    *leaves, upstream = (x.detach() for x in tensors)
    q, kv = (x.requires_grad_() for x in leaves)
    out = attention(q, kv)
    return out.detach(), *torch.autograd.grad(out, (q, kv), upstream)


def forward(attention: Attention, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The result."""
    with torch.no_grad():
        return (attention(*tensors[:2]),)


@pytest.mark.parametrize(("case", "mode", "provider"), rows(), ids=str)
def bench_reduced_attention(measure: Measure, case: Case, mode: str, provider: str) -> None:
    tensors = inputs(case)
    passes = both_ways if mode == "fwd+bwd" else forward

    def check() -> float:
        few = inputs(case, 16)
        exact = both_ways(reduced_attention, in_double(few))
        eager, results = both_ways(reduced_attention, few), both_ways(PROVIDERS[provider], few)
        return largest_error(results, eager, exact, SLACK[case.dtype])

    q, kv = tensors[0].nbytes, tensors[1].nbytes
    measure(
        partial(passes, PROVIDERS[provider], tensors),
        provider=provider,
        case=str(case),
        mode=mode,
        dtype=case.dtype,
        bytes_moved=(2 * q + kv) + ((4 * q + 2 * kv) if mode == "fwd+bwd" else 0),
        check=check,
    )
