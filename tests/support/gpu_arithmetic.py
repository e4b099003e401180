"""The rounding of a GPU's instructions in Triton's interpreter, which computes by IEEE's rules.

A tolerance that only correctly rounded arithmetic meets turns red on a GPU without a fault. So each
instruction that Triton chooses for ``/``, ``exp``, ``log``, ``sqrt`` and so on is given the largest
error that NVIDIA documents for it: of instructions in the PTX ISA, chapter "Floating Point
Instructions" (``div.full`` 2 ulp, ``rcp.approx`` 1 ulp, ``sqrt.approx`` 2^-23, ``rsqrt.approx``
2^-22.9, ``ex2.approx`` and ``lg2.approx`` 2^-22, ``sin.approx`` and ``cos.approx`` 2^-20.5), of
functions of libdevice in the CUDA C++ Programming Guide, "Mathematical Functions". The operands'
bits decide its sign: equal operands give equal results, as on a GPU, and repeated runs agree.

==================  =====================================  ======================================
operation           instruction                            error
==================  =====================================  ======================================
``x / y``           ``div.full``, by ``x * rcp(y)``        1 ulp of the reciprocal, none for
                                                           powers of two; then one rounding: no
                                                           more than the 2 ulp of the whole
``exp2(x)``         ``ex2.approx``                         2^-22 relative; tiny results are zero
``exp(x)``          ``ex2.approx(x * log2(e))``            the same, and that of the product
``log``, ``log2``   libdevice                              1 ulp
``sqrt``            ``sqrt.approx``                        2^-23 relative
``rsqrt``           ``rsqrt.approx``                       2^-22 relative
``sin``, ``cos``    libdevice                              2 ulp
``erf``             libdevice                              2 ulp
``dot`` in tf32     tensor cores                           the 13 low bits of operands are cut off
``fast_log2f``      ``lg2.approx``                         2^-22, absolute in (1/2, 2), relative
                                                           elsewhere
``fast_sinf``, ...  ``sin.approx``, ``cos.approx``         2^-20.5 absolute in [-pi, pi]
``fast_expf``       as ``exp``                             as ``exp``
==================  =====================================  ======================================

``GPU_ERRORS=up`` or ``down`` in the environment gives all errors one sign, which finds tolerances
that hold because errors cancel.

Left out: sums and products that the compiler contracts into one instruction, and the order of sums.
The same table holds for zero divisors: none is met, not even where the result is thrown away.
"""

from __future__ import annotations

import math
import os
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
_LOG2E = np.float32(np.log2(np.e))
_SIGNS = {"up": 1.0, "down": -1.0}
_errors = os.environ.get("GPU_ERRORS", "mixed")
_TINY = np.finfo(np.float32).tiny


def _chance(*operands: Array) -> Array:
    """1 or -1, as the bits of float32 operands decide."""
    if _errors != "mixed":
        return np.full(np.broadcast_shapes(*(np.shape(x) for x in operands)), _SIGNS[_errors])
    state = np.uint32(0x9E3779B9)
    with np.errstate(over="ignore"):
        for x in operands:
            state = (np.asarray(x, np.float32).view(np.uint32) ^ state) * np.uint32(0x85EBCA6B)
            state = (state ^ (state >> np.uint32(13))) * np.uint32(0xC2B2AE35)
            state = state ^ (state >> np.uint32(16))
    return np.where(state & np.uint32(1), 1.0, -1.0)


def _off(exact: Array, relative: float, *operands: Array) -> Array:
    """``exact`` with a relative error of ``relative``, in float32."""
    return (exact * (1.0 + relative * _chance(*operands))).astype(np.float32)


def _exp2(x: Array) -> Array:
    result = np.where(x == 0, 1.0, _off(np.exp2(x.astype(np.float64)), 2.0**-22, x))
    return np.where(result < _TINY, 0.0, result).astype(np.float32)


def _exp(x: Array) -> Array:
    return _exp2((x * _LOG2E).astype(np.float32))


def _fast_log2(x: Array) -> Array:
    exact = np.log2(x.astype(np.float64))
    error = np.where((x > 0.5) & (x < 2.0), 1.0, exact) * 2.0**-22
    return (exact + error * _chance(x)).astype(np.float32)


def _fast(function: Any) -> Any:
    def approximate(x: Array) -> Array:
        return (function(x.astype(np.float64)) + 2.0**-20.5 * _chance(x)).astype(np.float32)

    return approximate


def _by(function: Any, relative: float) -> Any:
    return lambda x: _off(function(x.astype(np.float64)), relative, x)


def _divide(x: Array, y: Array) -> Array:
    reciprocal = 1.0 / y.astype(np.float64)
    is_power = np.frexp(np.abs(y))[0] == 0.5
    return (x * np.where(is_power, reciprocal, _off(reciprocal, 2.0**-23, y))).astype(np.float32)


_UNARY = {
    "create_exp2": _exp2,
    "create_exp": _exp,
    "create_log": _by(np.log, 2.0**-23),
    "create_log2": _by(np.log2, 2.0**-23),
    "create_sqrt": _by(np.sqrt, 2.0**-23),
    "create_rsqrt": _by(lambda x: 1.0 / np.sqrt(x), 2.0**-22),
    "create_sin": _by(np.sin, 2.0**-22),
    "create_cos": _by(np.cos, 2.0**-22),
    "create_erf": _by(np.vectorize(math.erf, otypes=[np.float64]), 2.0**-22),
}
_DIVISIONS = ("fdiv", "precise_divf", "sdiv", "udiv", "srem", "urem", "frem")
_LIBDEVICE = {
    "fast_log2f": _fast_log2,
    "fast_sinf": _fast(np.sin),
    "fast_cosf": _fast(np.cos),
    "fast_expf": _exp,
}


def emulate(monkeypatch: pytest.MonkeyPatch, errors: str = _errors) -> None:
    """Give the interpreter's float32 the errors of the table, and refuse zero divisors.

    Args:
        monkeypatch: takes it back.
        errors: ``mixed``, ``up`` or ``down``.
    """
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    monkeypatch.setattr(sys.modules[__name__], "_errors", errors)
    for name, approximate in _UNARY.items():
        monkeypatch.setattr(Builder, name, _unary(getattr(Builder, name), approximate))
    for name in (f"create_{name}" for name in _DIVISIONS):
        monkeypatch.setattr(Builder, name, _division(getattr(Builder, name), name))
    monkeypatch.setattr(Builder, "create_dot", _dot(Builder.create_dot))
    _serve_fast_functions(monkeypatch)


def _unary(plain: Any, approximate: Any) -> Any:
    def create(self: Any, arg: Any) -> Any:
        if arg.data.dtype != np.float32:
            return plain(self, arg)
        # the interpreter says nothing of NaN and infinity, and neither does a GPU
        with np.errstate(all="ignore"):
            return self.unary_op(arg, approximate)

    return create


def _division(plain: Any, name: str) -> Any:
    def create(self: Any, lhs: Any, rhs: Any) -> Any:
        if not np.all(rhs.data):
            raise ZeroDivisionError(f"{name} met a zero divisor in a lane, used or not")
        if name != "create_fdiv" or rhs.data.dtype != np.float32:
            return plain(self, lhs, rhs)
        with np.errstate(all="ignore"):
            return self.binary_op(lhs, rhs, _divide)

    return create


def _dot(plain: Any) -> Any:
    from triton.runtime.interpreter import TensorHandle

    def cut(x: Any) -> Any:
        if x.data.dtype != np.float32:
            return x
        bits = np.ascontiguousarray(x.data).view(np.uint32) & np.uint32(0xFFFFE000)
        return TensorHandle(bits.view(np.float32), x.dtype.scalar)

    def create(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        if str(precision).rsplit(".", 1)[-1] == "TF32":
            a, b = cut(a), cut(b)
        return plain(self, a, b, d, precision, *rest)

    return create


def _serve_fast_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every module of kernels take the branch of a GPU where it has one of its own."""
    import triton.language as tl
    from triton.runtime.interpreter import interpreter_builder

    def serve(approximate: Any) -> Any:
        def call(x: Any) -> Any:
            with np.errstate(all="ignore"):
                return tl.tensor(interpreter_builder.unary_op(x.handle, approximate), x.type)

        return call

    functions = {name: serve(approximate) for name, approximate in _LIBDEVICE.items()}
    of_a_gpu = {"libdevice": SimpleNamespace(**functions), "FAST": True}
    modules = [x for name, x in sys.modules.items() if name.startswith("fastseg.kernels.")]
    for module in modules:
        for name in of_a_gpu.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, of_a_gpu[name])
