"""Depthwise 3x3 convolution, bias and GELU: two passes over the map forward, five backward.

    y = GELU(z),   z[n, r, s, c] = bias[c] + sum_ij weight[c, i, j] x[n, r + i - 1, s + j - 1, c]
    dz = dy GELU'(z),   dx[n, r, s, c] = sum_ij weight[c, i, j] dz[n, r - i + 1, s - j + 1, c]

Forward reads x and writes y. Backward reads x and dy, computes z again and writes dz in the dtype
of x, then reads dz and writes dx. To keep z would cost two passes more, and the memory; to compute
dz where dx needs it, three times its arithmetic, which the kernel waits for as it is. While dz is
in registers, its products with the nine neighbours are added up; a program leaves its sums in
float32, and the launch that writes dx adds them in a fixed order: a result repeats bit by bit. The
sum of dx over all tokens comes from the same registers: that of dz, times the weights whose
neighbours are in the image.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .. import reference
from ..common.device import on_device_of
from ..common.switch import DEVICES, UP, runs_on
from ..reference.network.depthwise import check_depthwise
from .depthwise_kernels import (
    _depthwise_conv_gelu_bwd_kernel,
    _depthwise_conv_gelu_fwd_kernel,
    _depthwise_conv_gelu_input_kernel,
)

_TILE = 512  # elements of a row that a program holds, four of a thread
_COLUMNS = 16  # at most
_PROGRAMS = 1056  # at least, as far as there are rows: eight for each multiprocessor of an H200
_LEAST_ROWS = 8
# of the backward kernel: three programs fit a multiprocessor
_REGISTERS = 168
SUMS = {"BLOCK_S": 32, "BLOCK_N": 64}  # of the programs that add up


def tile(width: int) -> dict[str, int]:
    """Columns and channels of a program."""
    columns = min(_COLUMNS, triton.next_power_of_2(width))
    return {"BLOCK_W": columns, "BLOCK_C": _TILE // columns, "num_warps": 4}


def _programs(x: Tensor, most: int) -> tuple[int, int, int]:
    """Rows of a program, programs that share their channels, and all programs."""
    n, h, w, c = x.shape
    size = tile(w)
    columns, channels = triton.cdiv(w, size["BLOCK_W"]), triton.cdiv(c, size["BLOCK_C"])
    rows = most
    while rows > _LEAST_ROWS and n * columns * channels * triton.cdiv(h, rows) < _PROGRAMS:
        rows //= 2
    parts = n * columns * triton.cdiv(h, rows)
    return rows, parts, parts * channels


def convolve_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The forward launch, of contiguous tensors."""
    _, h, w, c = x.shape
    out = torch.empty_like(x)
    rows, _, programs = _programs(x, 32)
    with on_device_of(x):
        _depthwise_conv_gelu_fwd_kernel[(programs,)](
            x, weight, bias, out, h, w, rows, C=c, UP=UP, **tile(w)
        )
    return out


def convolve_backward(
    upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor, of_x: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward launches: gradients of tokens, weight and bias.

    That of the tokens is summed over them into ``of_x [C]``, if there is one.
    """
    _, h, w, c = x.shape
    upstream = upstream.contiguous()
    dx, dz, dweight, dbias = (torch.empty_like(like) for like in (x, x, weight, bias))
    rows, parts, programs = _programs(x, 64)
    count = 10 if of_x is None else 11
    sums = x.new_empty((parts, count, c), dtype=torch.float32)
    with on_device_of(x):
        _depthwise_conv_gelu_bwd_kernel[(programs,)](
            x, weight, bias, upstream, dz, sums, h, w, rows,
            C=c, SUMS=count, UP=UP, maxnreg=_REGISTERS, **tile(w),
        )  # fmt: skip
        rows, _, programs = _programs(x, 32)
        first = triton.cdiv(count * c, SUMS["BLOCK_N"])
        _depthwise_conv_gelu_input_kernel[(first + programs,)](
            dz, weight, dx, sums, dweight, dbias, of_x, parts, first, h, w, rows,
            C=c, SUMS=count, UP=UP, **SUMS, **tile(w),
        )  # fmt: skip
    return dx, dweight, dbias


@torch.library.custom_op("fastseg::depthwise_conv_gelu", mutates_args=(), device_types=DEVICES)
def _depthwise_conv_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, input_bias: Tensor | None
) -> Tensor:
    return convolve_forward(x, weight, bias)


@_depthwise_conv_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, input_bias: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fastseg::depthwise_conv_gelu_bwd", mutates_args=(), device_types=DEVICES)
def _depthwise_conv_gelu_bwd(
    upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor, of_input_bias: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_x = _sum_of_gradients(bias, of_input_bias)
    wanted = None if of_input_bias is None else of_x
    return *convolve_backward(upstream, x, weight, bias, wanted), of_x


def _sum_of_gradients(bias: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Of the tokens, to be written; empty where it is not wanted."""
    return bias.new_empty(0 if dtype is None else bias.shape, dtype=dtype)


@_depthwise_conv_gelu_bwd.register_fake
def _(
    upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor, of_input_bias: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
    return *found, _sum_of_gradients(bias, of_input_bias)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, input_bias = inputs
    ctx.save_for_backward(*tensors)
    ctx.of_input_bias = None if input_bias is None else input_bias.dtype


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.of_input_bias if ctx.needs_input_grad[3] else None
    *grads, of_x = _depthwise_conv_gelu_bwd(upstream, *ctx.saved_tensors, wanted)
    return *grads, None if wanted is None else of_x


_depthwise_conv_gelu.register_autograd(_backward, setup_context=_setup_context)


def depthwise_conv_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, input_bias: Tensor | None = None
) -> Tensor:
    """Depthwise 3x3 convolution with bias, zeros outside the image, then the exact GELU.

    The kernels compute in float32 whatever the dtypes, which may differ, and GELU to 2e-7 of
    ``max(|z|, 1)``; a pre-activation that is infinite gives NaN. x alone is kept for the gradient.
    On a GPU results repeat bit by bit, nothing waits for the device, and the gradient has none.

    Args:
        x: tokens ``[N, h, w, C]``, any float dtype and strides, contiguous ones without a copy;
            no images, float64 and shapes alone are left to the definition.
        weight: ``[C, 1, 3, 3]``, any float dtype; the definition needs that of ``x``, or autocast.
        bias: ``[C]``, likewise.
        input_bias: ``[C]``, any float dtype: what the tokens have in them already as a constant,
            the bias of the layer that made them. It changes no value; its gradient is that of the
            tokens, summed over them in float32. None for none.

    Returns:
        ``[N, h, w, C]`` of the dtype of ``x``.

    Raises:
        ValueError: a shape or dtype does not fit, or the tensors are on several devices.

    Source: SegFormer, arXiv:2105.15203, section 3.1 (Mix-FFN).
    """
    check_depthwise(x, weight, bias, input_bias)
    biases = bias if input_bias is None else input_bias
    if x.is_meta or x.shape[0] == 0 or not all(map(runs_on, (x, weight, bias, biases))):
        return reference.depthwise_conv_gelu(x, weight, bias, input_bias)
    out: Tensor = _depthwise_conv_gelu(
        x.contiguous(), weight.contiguous(), bias.contiguous(), input_bias
    )
    return out
