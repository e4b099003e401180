"""Float32 to the dtype of a result, in kernels."""

import triton
import triton.language as tl


@triton.jit
def rounded_to(x, dtype: tl.constexpr, UP: tl.constexpr):
    """Float32 in the dtype of the result."""
    if UP and dtype == tl.bfloat16:
        # the interpreter cuts the lower half off: round to nearest, ties to even, before
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
