"""Exponentials and logarithms near one, without cancellation, in kernels."""

import triton
import triton.language as tl


@triton.jit
def exp_terms(r):
    """``exp(r) - 1`` and ``exp(r) - 1 - r``, without cancellation near zero."""
    near = tl.abs(r) < 1
    x = tl.where(near, r, 0.0)
    # Taylor: the first term left out is below 2^-27 of the sum
    tail = 1 / 39916800
    tail = tail * x + 1 / 3628800
    tail = tail * x + 1 / 362880
    tail = tail * x + 1 / 40320
    tail = tail * x + 1 / 5040
    tail = tail * x + 1 / 720
    tail = tail * x + 1 / 120
    tail = tail * x + 1 / 24
    tail = tail * x + 1 / 6
    tail = tail * x + 1 / 2
    growth = tl.exp(r) - 1
    rest = tl.where(near, x * x * tail, growth - r)
    return tl.where(near, x + rest, growth), rest


@triton.jit
def log1p_near(x):
    """``log(1 + x)`` for x in (-1/2, 1/2)."""
    # 2 atanh(s); the first term left out is below 2^-27 of the sum
    s = x / (2 + x)
    square = s * s
    series = 1 / 11
    series = series * square + 1 / 9
    series = series * square + 1 / 7
    series = series * square + 1 / 5
    series = series * square + 1 / 3
    return 2 * (s + s * square * series)


@triton.jit
def log1p(x):
    """``log(1 + x)``."""
    near = tl.abs(x) < 0.5
    return tl.where(near, log1p_near(tl.where(near, x, 0.0)), tl.log(1 + x))
