"""Depthwise convolution, bias and GELU in Triton against the definition."""

import math

import pytest
import torch

from fastseg.kernels import depthwise_conv_gelu, reference
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")

kernels = pytest.mark.usefixtures("kernels")

# images, rows, columns, channels
SHAPES = {
    "one-pixel": (1, 1, 1, 1),
    "one-row": (2, 1, 5, 3),
    "one-column-in-two-chunks": (1, 9, 1, 4),
    "several-blocks-of-columns-and-channels": (1, 2, 18, 33),
    "images": (2, 3, 3, 8),
    "many-channels": (1, 1, 2, 320),
}
# slack relative to the largest element
DTYPES = {
    "fp32": (torch.float32, 1e-6),
    "fp16": (torch.float16, 1e-3),
    "bf16": (torch.bfloat16, 8e-3),
}


def make_inputs(shape, device, dtype=torch.float32, weights=None):
    """Tokens, weight, bias and an upstream gradient."""
    n, h, w, c = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator)

    tensors = 2 * normal(n, h, w, c), normal(c, 1, 3, 3) / 2, normal(c) / 2, normal(n, h, w, c)
    dtypes = (dtype, weights or dtype, weights or dtype, dtype)
    return [x.to(device, dtype) for x, dtype in zip(tensors, dtypes, strict=True)]


def both_ways(function, x, weight, bias, upstream):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


def check(inputs, slack, function=depthwise_conv_gelu):
    truth = both_ways(reference.depthwise_conv_gelu, *(x.double() for x in inputs))
    eager = both_ways(reference.depthwise_conv_gelu, *inputs)
    fused = both_ways(function, *inputs)
    for result, plain, exact in zip(fused, eager, truth, strict=True):
        assert result.dtype == plain.dtype
        assert_as_accurate(result, plain, exact, slack * max(float(exact.abs().max()), 1.0))


@kernels
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_values_and_gradients_are_as_accurate_as_the_definition(shape, device):
    check(make_inputs(shape, device), DTYPES["fp32"][1])


@kernels
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_short_dtypes(name, device):
    dtype, slack = DTYPES[name]
    check(make_inputs((1, 3, 5, 7), device, dtype), slack)


def with_input_bias(function, x, weight, bias, upstream):
    """Gradients of all tensors, that of a bias in the tokens last."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias, bias.flip(0))]
    return torch.autograd.grad(function(*leaves), leaves, upstream)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES.values(), (1, 40, 3, 5)], ids=[*SHAPES, "chunks"])
def test_the_gradient_of_a_bias_in_the_tokens(shape, dtype, device, launched):
    inputs, slack = make_inputs(shape, device, DTYPES[dtype][0]), DTYPES[dtype][1]
    fused = with_input_bias(depthwise_conv_gelu, *inputs)
    assert launched == [f"_depthwise_conv_gelu_{way}_kernel" for way in ("fwd", "bwd", "input")]
    # the others are as they are without it
    assert all(map(torch.equal, fused, both_ways(depthwise_conv_gelu, *inputs)[1:]))
    eager = with_input_bias(reference.depthwise_conv_gelu, *inputs)
    truth = with_input_bias(reference.depthwise_conv_gelu, *(x.double() for x in inputs))
    assert fused[3].dtype == inputs[2].dtype
    assert_as_accurate(fused[3], eager[3], truth[3], slack * max(float(truth[3].abs().max()), 1.0))


def test_the_definition_gives_a_bias_the_gradient_of_what_was_added():
    inputs = [t.double() for t in make_inputs((2, 3, 4, 5), "cpu")]

    def by_hand(x, weight, bias, input_bias):
        return reference.depthwise_conv_gelu(x - input_bias.detach() + input_bias, weight, bias)

    both = (with_input_bias(f, *inputs) for f in (reference.depthwise_conv_gelu, by_hand))
    for found, wanted in zip(*both, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@kernels
def test_tokens_in_any_memory_order(device):
    x, weight, bias, upstream = make_inputs((2, 2, 6, 10), device)
    planar = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    wanted = both_ways(depthwise_conv_gelu, x, weight, bias, upstream)
    for got, expected in zip(
        both_ways(depthwise_conv_gelu, planar, weight, bias, upstream.flip(3).flip(3)),
        wanted, strict=True,
    ):  # fmt: skip
        assert torch.equal(got, expected)
    last = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(depthwise_conv_gelu(x, last, bias), wanted[0])
    # a part of the columns, of the channels, and every second image
    check([x[::2, :, 1:], weight, bias, upstream[::2, :, :5]], 1e-6)
    check([x[..., 3:8], weight[3:8], bias[::2], upstream[..., ::2]], 1e-6)
    check([x, weight.transpose(2, 3), bias, upstream[:1].expand_as(x)], 1e-6)


@kernels
def test_weights_of_another_dtype_are_read_as_they_are(device):
    """As under autocast, which leaves the tokens in bfloat16 and the weights in float32."""
    x, weight, bias, upstream = make_inputs((1, 2, 3, 20), device, torch.bfloat16, torch.float32)

    def plain(x, weight, bias):
        with torch.autocast(x.device.type, torch.bfloat16):
            return reference.depthwise_conv_gelu(x, weight, bias)

    truth = both_ways(
        reference.depthwise_conv_gelu, *(t.double() for t in (x, weight, bias, upstream))
    )
    eager = both_ways(plain, x, weight, bias, upstream)
    fused = both_ways(depthwise_conv_gelu, x, weight, bias, upstream)
    for result, like, exact in zip(fused, eager, truth, strict=True):
        assert result.dtype == like.dtype
        assert_as_accurate(result, like, exact, 8e-3 * float(exact.abs().max()))


@kernels
def test_gelu_and_its_slope_from_tail_to_tail(device):
    x = torch.linspace(-14, 14, 512, device=device).view(1, 1, 1, -1)
    weight = torch.zeros(512, 1, 3, 3, device=device)
    weight[:, :, 1, 1] = 1
    out, grad, *_ = both_ways(
        depthwise_conv_gelu, x, weight, weight[:, 0, 0, 0], torch.ones_like(x)
    )
    exact = x.double()
    below = torch.special.ndtr(exact)
    slope = below + exact * (-exact.square() / 2).exp() / math.sqrt(2 * math.pi)
    near = exact.abs().clamp(min=1)
    assert ((out - exact * below).abs() / near).max() <= 2e-7
    assert (grad - slope).abs().max() <= 4e-7


@kernels
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_does_not_get_lost(value, device):
    x, weight, bias, upstream = make_inputs((1, 3, 3, 2), device)
    x[0, 1, 1, 0] = value
    for result in both_ways(depthwise_conv_gelu, x, weight, bias, upstream):
        assert not result.isfinite().all()
        # the other channel knows nothing of it
        assert result.view(-1, 2)[:, 1].isfinite().all() or result.shape == weight.shape


@kernels
def test_results_repeat_bit_by_bit(device):
    inputs = make_inputs((1, 9, 5, 8), device)
    for first, second in zip(
        both_ways(depthwise_conv_gelu, *inputs),
        both_ways(depthwise_conv_gelu, *inputs),
        strict=True,
    ):
        assert torch.equal(first, second)


@kernels
def test_an_image_does_not_depend_on_its_batch(device):
    x, weight, bias, upstream = make_inputs((3, 2, 5, 8), device)
    out, grad, *_ = both_ways(depthwise_conv_gelu, x, weight, bias, upstream)
    alone = both_ways(depthwise_conv_gelu, x[1:2], weight, bias, upstream[1:2])
    assert torch.equal(alone[0], out[1:2])
    assert torch.equal(alone[1], grad[1:2])


@kernels
def test_launches_passes_over_the_map_and_what_is_kept(device, launched, monkeypatch):
    """Three launches read or write maps seven times, and x alone is kept: the plain form 2 maps."""
    from triton.runtime import interpreter

    x, weight, bias, upstream = make_inputs((8, 2, 6, 8), device, torch.bfloat16)
    maps, run_grid = [], interpreter.GridExecutor.__call__

    def count(self, *args, **kwargs):
        tensors = [a for a in args if isinstance(a, torch.Tensor) and a.numel() >= x.numel()]
        maps.append([a.dtype for a in tensors])
        return run_grid(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", count)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = depthwise_conv_gelu(*(t.requires_grad_() for t in (x, weight, bias)))
    out.backward(upstream)
    assert launched == [f"_depthwise_conv_gelu_{way}_kernel" for way in ("fwd", "bwd", "input")]
    # x y; x dy dz; dz dx
    assert maps == [[torch.bfloat16] * passes for passes in (2, 3, 2)]
    assert [t.data_ptr() for t in kept if t.shape == x.shape] == [x.data_ptr()]


@kernels
def test_no_wait_for_the_device(device, monkeypatch):
    def wait(self, *_):
        raise AssertionError("the host waits for a value on the device")

    inputs = make_inputs((1, 3, 3, 4), device)
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    both_ways(depthwise_conv_gelu, *inputs)


@kernels
def test_the_operators_are_registered_as_they_behave(device):
    x, weight, bias, upstream = make_inputs((1, 3, 2, 4), device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    forward, backward = (
        getattr(torch.ops.fastseg, f"depthwise_conv_gelu{way}").default for way in ("", "_bwd")
    )
    constants = [t.detach() for t in leaves]
    for input_bias, dtype in ((None, None), (bias.detach().requires_grad_(), torch.float32)):
        torch.library.opcheck(forward, (*leaves, input_bias))
        torch.library.opcheck(backward, (upstream, *constants, dtype))


@kernels
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_to_one_graph(autocast, device):
    inputs = make_inputs((1, 3, 2, 4), device)

    def layer(x, weight, bias):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            return depthwise_conv_gelu(x, weight, bias)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(both_ways(compiled, *inputs), both_ways(layer, *inputs), strict=True):
        assert torch.equal(got, wanted)


def test_the_definition_has_the_right_gradient():
    inputs = [x.double().requires_grad_() for x in make_inputs((2, 3, 4, 2), "cpu")[:3]]
    assert torch.autograd.gradcheck(depthwise_conv_gelu, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_definition_is_the_layer_of_torch_bit_by_bit(dtype):
    x, weight, bias, upstream = make_inputs((2, 5, 6, 8), "cpu", dtype)
    conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8).to(dtype)

    def layer(x, weight, bias):
        image = torch.func.functional_call(
            conv, {"weight": weight, "bias": bias}, x.permute(0, 3, 1, 2)
        )
        return torch.nn.functional.gelu(image.permute(0, 2, 3, 1))

    for got, wanted in zip(
        both_ways(depthwise_conv_gelu, x, weight, bias, upstream),
        both_ways(layer, x, weight, bias, upstream),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@kernels
def test_no_images_and_shapes_alone(device):
    x, weight, bias, upstream = make_inputs((0, 3, 2, 4), device)
    assert [t.shape for t in both_ways(depthwise_conv_gelu, x, weight, bias, upstream)] == [
        (0, 3, 2, 4), (0, 3, 2, 4), (4, 1, 3, 3), (4,),
    ]  # fmt: skip
    meta = [t.to("meta") for t in make_inputs((1, 3, 2, 4), device)[:3]]
    assert depthwise_conv_gelu(*meta).shape == (1, 3, 2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (3, 2, 4)}, r"\[N, h, w, C\] with a pixel, got \(3, 2, 4\)"),
        ({"x": (1, 0, 2, 4)}, r"with a pixel, got \(1, 0, 2, 4\)"),
        ({"weight": (4, 9)}, r"weight \(4, 1, 3, 3\) and bias \(4,\) for 4 channels, got \(4, 9\)"),
        ({"bias": (1,)}, r"got \(4, 1, 3, 3\) and \(1,\)"),
        ({"input_bias": (3,)}, r"input_bias \(4,\) for 4 channels, got \(3,\)"),
        ({"dtype": torch.int64}, r"tokens must be floats, got torch\.int64"),
        ({"device": "meta"}, r"one device, got cpu and meta \(weight\)"),
    ],
    ids=str,
)
def test_wrong_inputs_are_named(change, message):
    x = torch.zeros(change.get("x", (1, 3, 2, 4)), dtype=change.get("dtype"))
    weight = torch.zeros(change.get("weight", (4, 1, 3, 3)), device=change.get("device"))
    with pytest.raises(ValueError, match=message):
        depthwise_conv_gelu(
            x, weight, *(torch.zeros(change.get(name, (4,))) for name in ("bias", "input_bias"))
        )
