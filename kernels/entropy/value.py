"""Functional entropy of given values, and its gradient.

    Ent = f' mean(phi(e)),   phi(e) = (1 + e) log(1 + e) - e,   e = f / f' - 1,   f' = mean(f)
    dEnt / df_s = (1/S) log(f_s / f')

Source: as :mod:`fastseg.kernels.reference.entropy`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.device import on_device_of
from ..common.rounding import rounded_to
from ..common.switch import DEVICES, UP
from .rows import fresh

BLOCK = 256
_EPS = tl.constexpr(torch.finfo(torch.float32).eps)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _mean(values_ptr, S, inner, mask, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for s in range(S):
        total += tl.load(values_ptr + s * inner, mask=mask, other=1.0).to(tl.float32)
    return total / S


@triton.jit
def _excess_and_log(value, mean):
    """``e = f / f' - 1``, ``log(1 + e)``, where a zero counts as the rounding of one, and where."""
    excess = (value - mean) / tl.where(mean < _TINY, _TINY, mean)
    # by a comparison without a quotient: a GPU's -m / m may be more than minus one
    low = value < mean * _EPS
    clamped = tl.where(low | (excess < _EPS - 1.0), _EPS - 1.0, excess)
    # the rounding of 1 + e cancels in the quotient
    near = 1.0 + clamped
    quotient = clamped / tl.where(near == 1.0, 1.0, near - 1.0)
    return excess, tl.where(near == 1.0, clamped, tl.log(near) * quotient), low


@triton.jit
def _functional_entropy_fwd_kernel(values_ptr, out_ptr, S, inner, total, BLOCK: tl.constexpr):
    """Entropy over the samples of each position.

    Args:
        values_ptr: ``[outer, S, inner]``, contiguous.
        out_ptr: ``[outer, inner]`` float32, written.
        S: samples.
        inner: length of the last axis.
        total: outer times inner.
        BLOCK: entropies of a program.
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < total
    values_ptr += (offs // inner) * inner * S + offs % inner
    mean = _mean(values_ptr, S, inner, mask, BLOCK)
    entropy = tl.zeros((BLOCK,), dtype=tl.float32)
    for s in range(S):
        value = tl.load(values_ptr + s * inner, mask=mask, other=1.0).to(tl.float32)
        excess, log, _ = _excess_and_log(value, mean)
        series = excess * (1.0 / 30 - excess * (1.0 / 42 - excess / 56))
        series = excess * (1.0 / 12 - excess * (1.0 / 20 - series))
        series = excess * excess * (0.5 - excess * (1.0 / 6) + series)
        far = (1.0 + excess) * log - excess
        entropy += tl.where(tl.abs(excess) < 0.1, series, far)
    tl.store(out_ptr + offs, mean * entropy / S, mask=mask)


@triton.jit
def _functional_entropy_bwd_kernel(
    values_ptr, upstream_ptr, out_ptr, S, inner, total, UP: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient of the values.

    Args:
        values_ptr: ``[outer, S, inner]``, contiguous.
        upstream_ptr: ``[outer, inner]`` float32.
        out_ptr: laid out like the values, written.
        S: samples.
        inner: length of the last axis.
        total: outer times inner.
        UP: round to bfloat16 by hand, as the interpreter does not.
        BLOCK: entropies of a program.
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < total
    place = (offs // inner) * inner * S + offs % inner
    mean = _mean(values_ptr + place, S, inner, mask, BLOCK)
    upstream = tl.load(upstream_ptr + offs, mask=mask, other=0.0) / S
    for s in range(S):
        value = tl.load(values_ptr + place + s * inner, mask=mask, other=1.0).to(tl.float32)
        _, log, low = _excess_and_log(value, mean)
        # minus infinity is the true slope at zero; this is the slope of the clamped form
        log -= tl.where(low, 1.0, 0.0)
        gradient = rounded_to(upstream * log, out_ptr.dtype.element_ty, UP)
        tl.store(out_ptr + place + s * inner, gradient, mask=mask)


@torch.library.custom_op("fastseg::functional_entropy", mutates_args=(), device_types=DEVICES)
def _functional_entropy(values: Tensor) -> Tensor:
    """Entropy of ``[outer, S, inner]`` along the middle axis, ``[outer, inner]`` float32."""
    with on_device_of(values):
        values = values.contiguous()
        outer, samples, inner = values.shape
        out = fresh(values, outer, inner)
        _functional_entropy_fwd_kernel[(triton.cdiv(outer * inner, BLOCK),)](
            values, out, samples, inner, outer * inner, BLOCK=BLOCK, num_warps=4
        )
        return out


@_functional_entropy.register_fake
def _(values: Tensor) -> Tensor:
    outer, _, inner = values.shape
    return fresh(values, outer, inner)


@torch.library.custom_op(
    "fastseg::functional_entropy_gradient", mutates_args=(), device_types=DEVICES
)
def _functional_entropy_gradient(values: Tensor, upstream: Tensor) -> Tensor:
    with on_device_of(values):
        values = values.contiguous()
        outer, samples, inner = values.shape
        out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        _functional_entropy_bwd_kernel[(triton.cdiv(outer * inner, BLOCK),)](
            values, upstream.contiguous(), out, samples, inner, outer * inner, UP=UP, BLOCK=BLOCK,
            num_warps=4,
        )  # fmt: skip
        return out


@_functional_entropy_gradient.register_fake
def _(values: Tensor, upstream: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=values.device)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, upstream: Tensor) -> Tensor:
    (values,) = ctx.saved_tensors
    gradient: Tensor = _functional_entropy_gradient(values, upstream)
    return gradient


_functional_entropy.register_autograd(_backward, setup_context=_setup_context)


def entropy_forward(values: Tensor, dim: int) -> Tensor:
    """``reference.functional_entropy`` of values that are not empty, by the kernels."""
    dim %= values.ndim
    before, after = values.shape[:dim], values.shape[dim + 1 :]
    entropy: Tensor = _functional_entropy(
        values.reshape(before.numel(), values.shape[dim], after.numel())
    )
    return entropy.view(before + after)
