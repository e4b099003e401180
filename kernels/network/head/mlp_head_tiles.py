"""Pieces of the head's kernels: what they load, and in which precision they multiply."""

import triton
import triton.language as tl

from ...common.rounding import rounded_to


@triton.jit
def load_as(ptrs, mask, dtype: tl.constexpr, UP: tl.constexpr):
    """Values in the dtype of a product; in the interpreter as float32 that the dtype can hold."""
    x = rounded_to(tl.load(ptrs, mask=mask, other=0.0).to(tl.float32), dtype, UP)
    return x.to(tl.float32) if UP else x


@triton.jit
def factor_of(x, dtype: tl.constexpr, UP: tl.constexpr):
    """Float32 as a factor of a product in a dtype."""
    x = rounded_to(x, dtype, UP)
    return x.to(tl.float32) if UP else x


@triton.jit
def load_norm(stats_ptr, weight_ptr, bias_ptr, offs_e, in_e, E, eps):
    """Mean, 1 / sqrt(var + eps), weight over that root, and bias of some channels, ``[1, E]``."""
    mean = tl.load(stats_ptr + offs_e, mask=in_e, other=0.0)
    var = tl.load(stats_ptr + E + offs_e, mask=in_e, other=1.0)
    inverse = tl.rsqrt(var + eps)
    scale = tl.load(weight_ptr + offs_e, mask=in_e, other=0.0).to(tl.float32) * inverse
    bias = tl.load(bias_ptr + offs_e, mask=in_e, other=0.0).to(tl.float32)
    return mean[None, :], inverse[None, :], scale[None, :], bias[None, :]


@triton.jit
def load_classifier(weight_ptr, offs_e, in_e, E, K, dtype: tl.constexpr,
                    BLOCK_K: tl.constexpr, UP: tl.constexpr):  # fmt: skip
    """The classifier's weights of some channels, ``[K, channels]``."""
    offs_k = tl.arange(0, BLOCK_K)
    w_ptrs = weight_ptr + (offs_k * E)[:, None] + offs_e[None, :]
    return load_as(w_ptrs, (offs_k < K)[:, None] & in_e[None, :], dtype, UP)


@triton.jit
def product_by_classes(grad_ptr, weight_ptr, offs_p, in_p, offs_e, in_e, E, K, dtype: tl.constexpr,
                       BLOCK_K: tl.constexpr, STEP_K: tl.constexpr, DOT: tl.constexpr,
                       UP: tl.constexpr):  # fmt: skip
    """Gradient of the logits times the classifier, ``[pixels, channels]``, some classes at a time.

    Both are loaded here again: what a large product of float32 is made of fills the registers.
    """
    total = tl.zeros((offs_p.shape[0], offs_e.shape[0]), dtype=tl.float32)
    for start in range(0, BLOCK_K, STEP_K):
        offs_k = start + tl.arange(0, STEP_K)
        in_k = offs_k < K
        d_ptrs = grad_ptr + ((offs_p * K)[:, None] + offs_k[None, :])
        d = load_as(d_ptrs, in_p[:, None] & in_k[None, :], dtype, UP)
        w_ptrs = weight_ptr + (offs_k * E)[:, None] + offs_e[None, :]
        w = load_as(w_ptrs, in_k[:, None] & in_e[None, :], dtype, UP)
        total = tl.dot(d, w, total, input_precision=DOT)
    return total
