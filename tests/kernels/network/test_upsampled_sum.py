"""The sum of upsampled levels in Triton against its definition."""

import pytest
import torch
import torch.nn.functional as F

from fastseg.kernels import reference, sum_of_upsampled
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")
from fastseg.kernels.network.head import upsampling

# batch, channels, sizes of the levels, size of the sum
SHAPES = {
    "levels": (2, 24, [(2, 3), (1, 2)], (4, 6)),
    "odd": (1, 5, [(3, 4), (2, 2)], (5, 7)),
    "one-pixel-to-many": (2, 3, [(1, 1), (1, 4)], (5, 4)),
    "one-pixel": (1, 1, [(1, 1)], (1, 1)),
    "same-size": (1, 16, [(6, 5)], (6, 5)),
    "far": (1, 20, [(2, 1)], (16, 5)),
    "wide": (1, 300, [(1, 2)], (2, 3)),
}
DTYPES = {
    "fp32": (torch.float32, 2e-6),
    "fp16": (torch.float16, 1e-3),
    "bf16": (torch.bfloat16, 1e-2),
}


def make_levels(shape, device, dtype=torch.float32, seed=0):
    b, e, sizes, size = shape
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(b, h, w, e, generator=generator) for h, w in sizes]
    return [x.to(device, dtype).permute(0, 3, 1, 2) for x in levels], size


def run(function, levels, size, seed=1):
    """The sum and the gradients of a fixed weighting of it."""
    levels = [x.detach().requires_grad_() for x in levels]
    out = function(levels, size)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out)
    return [out, *torch.autograd.grad(out, levels, weight)]


def check(levels, size, slack):
    got = run(sum_of_upsampled, levels, size)
    eager = run(reference.sum_of_upsampled, levels, size)
    truth = run(reference.sum_of_upsampled, [x.double() for x in levels], size)
    for result, plain, exact in zip(got, eager, truth, strict=True):
        assert result.dtype == plain.dtype
        assert_as_accurate(result, plain, exact, slack * max(1.0, float(exact.abs().max())))
    return got


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_the_definition(shape, device):
    check(*make_levels(shape, device), DTYPES["fp32"][1])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("dtype", "slack"), list(DTYPES.values())[1:], ids=list(DTYPES)[1:])
@pytest.mark.parametrize("shape", ["levels", "odd"])
def test_matches_the_definition_in_short_dtypes(shape, dtype, slack, device):
    check(*make_levels(SHAPES[shape], device, dtype), slack)


LAYOUTS = {
    "planar": lambda x: x.contiguous(),
    "some-channels": lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[
        :, : x.shape[1]
    ],
    "every-other-sample": lambda x: x.repeat_interleave(2, 0)[::2],
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:, :, :1, :1].expand(x.shape),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_strides(layout, device):
    levels, size = make_levels(SHAPES["levels"], device)
    out, *_ = check([layout(x) for x in levels], size, 2e-6)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("kernels")
def test_a_gradient_of_any_strides(device):
    levels, size = make_levels(SHAPES["odd"], device)
    levels = [x.requires_grad_() for x in levels]
    out = sum_of_upsampled(levels, size)
    expanded = torch.autograd.grad(out.sum(), levels, retain_graph=True)
    dense = torch.autograd.grad(out, levels, torch.ones_like(out))
    assert all(torch.equal(x, y) for x, y in zip(expanded, dense, strict=True))


@pytest.mark.usefixtures("kernels")
def test_the_weights_of_a_pixel_sum_to_one_and_back_to_the_number_of_outputs(device):
    levels, size = make_levels(SHAPES["odd"], device)
    out, *grads = run(sum_of_upsampled, [torch.ones_like(x) for x in levels], size)
    torch.testing.assert_close(out, torch.full_like(out, len(levels)))
    ones = [x.requires_grad_() for x in levels]
    for grad in torch.autograd.grad(sum_of_upsampled(ones, size).sum(), ones):
        total = torch.full_like(grad[:, :, 0, 0], size[0] * size[1])
        torch.testing.assert_close(grad.sum((2, 3)), total)
    assert len(grads) == len(levels)


@pytest.mark.usefixtures("kernels")
def test_one_launch_each_way_and_the_same_bits_again(device, launched):
    levels, size = make_levels(SHAPES["levels"], device, torch.bfloat16)
    first = run(sum_of_upsampled, levels, size)
    assert launched == [f"_upsampled_sum_{way}_kernel" for way in ("fwd", "bwd")]
    second = run(sum_of_upsampled, levels, size)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.usefixtures("kernels")
def test_gradients_that_add_up_are_rounded_once(device):
    # 36 outputs or more of up to one each: a sum in bfloat16 stops growing evenly long before
    level = torch.zeros(1, 16, 2, 2, device=device, dtype=torch.bfloat16).requires_grad_()
    (grad,) = torch.autograd.grad(sum_of_upsampled([level], (12, 12)).sum(), [level])
    exact = level.detach().double().requires_grad_()
    up = F.interpolate(exact, (12, 12), mode="bilinear", align_corners=False)
    (truth,) = torch.autograd.grad(up.sum(), [exact])
    torch.testing.assert_close(grad.double(), truth, rtol=2**-8, atol=0)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("band", [1, 3, 1000])
def test_bands_of_any_height(band, device, monkeypatch):
    monkeypatch.setattr(upsampling, "_BAND", band)
    check(*make_levels(SHAPES["odd"], device), 2e-6)


@pytest.mark.usefixtures("kernels")
def test_it_is_an_operator(device):
    levels, size = make_levels(SHAPES["one-pixel-to-many"], device)
    levels = [x.requires_grad_() for x in levels]
    torch.library.opcheck(upsampling._upsampled_sum, (levels, *size))


def test_smaller_outputs_empty_batches_and_float64_take_the_definition():
    levels, _ = make_levels(SHAPES["levels"], "cpu")
    assert sum_of_upsampled(levels, (3, 2)).shape == (2, 24, 3, 2)
    assert sum_of_upsampled([x[:0] for x in levels], (4, 6)).shape == (0, 24, 4, 6)
    assert sum_of_upsampled([x.double() for x in levels], (4, 6)).dtype == torch.float64


@pytest.mark.parametrize(
    ("levels", "size", "message"),
    [
        ([], (1, 1), "at least one level"),
        ([torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3)], (3, 3), "one B and E"),
        ([torch.zeros(2, 3, 3)], (3, 3), "one B and E"),
        ([torch.zeros(1, 2, 0, 3)], (3, 3), "one B and E"),
        ([torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3).half()], (3, 3), "one float dtype"),
        ([torch.zeros(1, 2, 3, 3, dtype=torch.int64)], (3, 3), "one float dtype"),
        ([torch.zeros(1, 2, 3, 3)], (3, 0), "two positive numbers"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(levels, size, message):
    with pytest.raises(ValueError, match=message):
        sum_of_upsampled(levels, size)
