"""Forms of the two kinds of dense convolution in the encoder, both passes, in one run.

``reduction`` is the spatial reduction of a level's keys: kernel and stride are r, so it is exactly
a product. ``conv`` is torch's convolution of channels-last tokens, ``product`` copies tokens to
rows of r r C numbers and multiplies, ``rows`` multiplies r strided rows of patches without a copy
and adds.

``patches`` is the first convolution, 7 x 7 with stride 4, of images whose gradient nobody needs.
``conv`` reads the planes of the images, ``channels_last`` brings them and the weight into that
order, ``four_channels`` adds one of zeros before, ``unfold`` is a product with columns of 147
numbers, and ``unshuffle`` puts blocks of 4 x 4 pixels into channels, of which a 2 x 2 convolution
with stride 1 makes the same sums.

Images are two samples of four modalities, at 1024 pixels on a GPU and 256 on a CPU. A form's copies
of tokens and weights belong to its time. ``eager`` is the form that the network has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error

IMAGES, SIDE = 8, 1024 if shapes.ON_GPU else 256
WIDTHS, REDUCTIONS = shapes.WIDTHS["b0"], (8, 4, 2)
# relative to the largest element; sums of another order
SLACK = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
TESTS = ["test_mit.py"]
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def reduction_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Torch's convolution of tokens ``[N, h, w, C]``, as the network has it."""
    r = weight.shape[-1]
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, r).permute(0, 2, 3, 1)


def reduction_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product of patches, for which tokens are copied."""
    n, h, w, c = x.shape
    r = weight.shape[-1]
    patches = x.view(n, h // r, r, w // r, r * c).transpose(2, 3).reshape(-1, r * r * c)
    rows = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    return F.linear(patches, rows, bias).view(n, h // r, w // r, -1)


def reduction_rows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product for each row of the patches, where tokens lie as it needs them."""
    n, h, w, c = x.shape
    r = weight.shape[-1]
    lines = x.view(n * (h // r), r, w // r, r * c)
    rows = weight.permute(2, 3, 1, 0).reshape(r, 1, r * c, -1).expand(-1, len(lines), -1, -1)
    total = torch.baddbmm(bias, lines[:, 0], rows[0])
    for i in range(1, r):
        total = torch.baddbmm(total, lines[:, i], rows[i])
    return total.view(n, h // r, w // r, -1)


def patches_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Torch's convolution of images ``[N, 3, H, W]``, as the network has it."""
    return F.conv2d(x, weight, bias, 4, 3).permute(0, 2, 3, 1)


def patches_channels_last(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same with the channels last in memory."""
    kind = torch.channels_last
    return patches_conv(
        x.contiguous(memory_format=kind), weight.contiguous(memory_format=kind), bias
    )


def patches_four_channels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same with a channel of zeros, so that a pixel is one aligned load."""
    x, weight = (F.pad(y, (0, 0, 0, 0, 0, 1)) for y in (x, weight))
    return patches_channels_last(x, weight, bias)


def patches_unfold(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product with the columns of 7 x 7 pixels."""
    n, _, h, w = x.shape
    columns = F.unfold(x, 7, padding=3, stride=4).transpose(1, 2)
    return F.linear(columns, weight.flatten(1), bias).view(n, h // 4, w // 4, -1)


def patches_unshuffle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 2 x 2 convolution of blocks of 4 x 4 pixels: rows -4 .. 3 around the patch's corner."""
    blocks = F.pad(F.pixel_unshuffle(x, 4), (1, 0, 1, 0))
    weight = F.pad(weight, (1, 0, 1, 0))  # row -4 counts nothing
    o, c = weight.shape[:2]
    weight = weight.view(o, c, 2, 4, 2, 4).permute(0, 1, 3, 5, 2, 4).reshape(o, 16 * c, 2, 2)
    return F.conv2d(blocks, weight, bias).permute(0, 2, 3, 1)


FORMS: dict[str, dict[str, Form]] = {
    "reduction": {
        "eager": reduction_conv,
        "product": reduction_product,
        "rows": reduction_rows,
    },
    "patches": {
        "eager": patches_conv,
        "channels_last": patches_channels_last,
        "four_channels": patches_four_channels,
        "unfold": patches_unfold,
        "unshuffle": patches_unshuffle,
    },
}
# in bfloat16, too: it is what the network has on a GPU, and its convolutions on a CPU are a library
DTYPES = (torch.float32, torch.bfloat16)
ROWS = [
    (kind, level, dtype, form)
    for dtype in DTYPES
    for kind, levels in (("patches", (1,)), ("reduction", (1, 2, 3)))
    for level in levels
    for form in FORMS[kind]
]


@lru_cache(maxsize=1)
def problem(kind: str, level: int, dtype: torch.dtype) -> list[Tensor]:
    """Tokens or images, weight, bias and an upstream gradient; rows that follow share them."""
    generator = torch.Generator(shapes.DEVICE).manual_seed(level)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=shapes.DEVICE).to(dtype)

    c, side = WIDTHS[level - 1], SIDE // shapes.STRIDES[level - 1]
    if kind == "patches":
        return [normal(IMAGES, 3, SIDE, SIDE), normal(c, 3, 7, 7) / 12, normal(c),
                normal(IMAGES, side, side, c)]  # fmt: skip
    r = REDUCTIONS[level - 1]
    weight = (normal(c, c, r, r) / (r * c**0.5)).contiguous(memory_format=torch.channels_last)
    return [normal(IMAGES, side, side, c), weight, normal(c),
            normal(IMAGES, side // r, side // r, c)]  # fmt: skip


def both_ways(form: Form, inputs: list[Tensor], of_input: bool) -> tuple[Tensor, ...]:
    """The result, and the gradients of weight, bias and, of tokens, the input."""
    x, weight, bias = (y.detach().requires_grad_() for y in inputs[:3])
    x = x if of_input else x.detach()
    leaves = [weight, bias, *([x] if of_input else [])]
    out = form(x, weight, bias)
    return out.detach(), *torch.autograd.grad(out, leaves, inputs[3])


@lru_cache(maxsize=1)
def wanted(
    kind: str, level: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Results of the network's form, in the dtype and in float64."""
    inputs, of_input = problem(kind, level, dtype), kind == "reduction"
    form = FORMS[kind]["eager"]
    return both_ways(form, inputs, of_input), both_ways(form, in_double(inputs), of_input)


@pytest.mark.parametrize(("kind", "level", "dtype", "form"), ROWS, ids=str)
def bench_convolution_forms(
    measure: Measure, kind: str, level: int, dtype: torch.dtype, form: str
) -> None:
    inputs = problem(kind, level, dtype)
    run = partial(both_ways, FORMS[kind][form], inputs, kind == "reduction")

    def check() -> float:
        return largest_error(run(), *wanted(kind, level, dtype), SLACK[dtype])

    x, weight, _, upstream = inputs
    # input, result, gradient and both weights; of tokens their gradient, too
    moved = (2 if kind == "patches" else 3) * x.nbytes + 2 * upstream.nbytes + 3 * weight.nbytes
    measure(
        run,
        provider=form,
        case=f"{kind} level{level} {IMAGES}x{SIDE}px",
        mode="fwd+bwd",
        dtype=dtype,
        bytes_moved=moved,
        check=check,
    )
