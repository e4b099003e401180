"""The exact GELU and its slope, by one exponential and one reciprocal, in kernels."""

import triton
import triton.language as tl

# Phi(-a) = exp(-a^2 / 2) t (c0 + c1 t + ... + c6 t^6), t = 1 / (1 + T a), a >= 0: a least-squares
# fit, weighted until the largest error was least: 9e-9 of max(a, 1) Phi(-a), 9e-6 relative
_T = tl.constexpr(0.2524999976158142)
_C0 = tl.constexpr(0.10006780692617107)
_C1 = tl.constexpr(0.11009344607882199)
_C2 = tl.constexpr(0.0405021089311345)
_C3 = tl.constexpr(0.24521597987280358)
_C4 = tl.constexpr(-0.21929423306635895)
_C5 = tl.constexpr(0.3100906873043634)
_C6 = tl.constexpr(-0.08667580341387233)
_HALF_LOG2E = tl.constexpr(0.7213475204444817)
_DENSITY = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def _reciprocal(x, UP: tl.constexpr):
    """``1 / x`` for x of at least 1."""
    if UP:
        return 1.0 / x
    # a division spends seven more instructions on the range of its divisor
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _bell_and_tail(z, UP: tl.constexpr):
    """``exp(-z^2 / 2)`` and ``Phi(-|z|)``; a third of the instructions of ``erf``, both at once."""
    bell = tl.exp2(z * z * -_HALF_LOG2E)
    t = _reciprocal(tl.abs(z) * _T + 1.0, UP)
    tail = t * _C6 + _C5
    tail = tail * t + _C4
    tail = tail * t + _C3
    tail = tail * t + _C2
    tail = tail * t + _C1
    tail = tail * t + _C0
    return bell, tail * t * bell


@triton.jit
def gelu(z, UP: tl.constexpr):
    """``z Phi(z)``; NaN for infinite z."""
    _, tail = _bell_and_tail(z, UP)
    return tl.maximum(z, 0.0) - tl.abs(z) * tail


@triton.jit
def gelu_slope(z, UP: tl.constexpr):
    """``Phi(z) + z phi(z)``; NaN for infinite z."""
    bell, tail = _bell_and_tail(z, UP)
    return tl.where(z > 0, 1.0 - tail, tail) + z * _DENSITY * bell
