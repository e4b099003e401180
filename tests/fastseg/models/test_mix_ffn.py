"""Mix-FFN by the kernels: a whole encoder against itself by the definitions."""

import pytest
import torch

pytest.importorskip("triton")
from fastseg.kernels.common import switch
from fastseg.kernels.testing import assert_as_accurate
from fastseg.models.backbones.mit import Backbone, MixTransformer, Mlp

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_kernels = pytest.mark.skipif(
    DEVICE.type == "cpu" and not switch.INTERPRET, reason="no GPU, and no interpreter"
)
TINY = Backbone((4, 4, 6, 8), (1, 1, 1, 1), heads=(1, 1, 2, 2), reductions=(2, 2, 2, 1))


def make_encoder(dtype=torch.float32):
    torch.manual_seed(0)
    encoder = MixTransformer(TINY, drop_path=0.0)
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.parameters():
        # the biases count, too
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return encoder.to(DEVICE, dtype)


def make_images(dtype=torch.float32):
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)


def both_ways(encoder, images):
    """Features of all levels and gradients of all parameters, by name."""
    weights = dict(encoder.named_parameters())
    features = encoder(images)
    loss = sum(x.square().mean() for x in features)
    grads = torch.autograd.grad(loss, list(weights.values()))
    levels = {f"level {i + 1}": x.detach() for i, x in enumerate(features)}
    return levels | dict(zip(weights, grads, strict=True))


def check(fused, eager, truth, slack):
    for name, exact in truth.items():
        scale = max(float(exact.abs().max()), 1e-3)
        assert_as_accurate(fused[name], eager[name], exact, slack * scale)


@needs_kernels
def test_features_and_all_gradients_of_an_encoder():
    encoder, images = make_encoder(), make_images()
    with switch.force_reference():
        eager = both_ways(encoder, images)
        truth = both_ways(make_encoder(torch.float64), images.double())
    with switch.force_kernels():
        fused = both_ways(encoder, images)
    check(fused, eager, truth, 2e-5)
    encoder.checkpointing = True
    with switch.force_kernels():
        again = both_ways(encoder, images)
    assert all(torch.equal(fused[name], again[name]) for name in fused)


@needs_kernels
@pytest.mark.parametrize("way", ["autocast", "cast"])
def test_short_weights_and_autocast_serve_the_kernels(way):
    torch.manual_seed(0)
    mlp = Mlp(4, 8).to(DEVICE)
    x = torch.randn(1, 3, 4, 4, device=DEVICE)

    def run(dtype):
        weights = list(mlp.parameters())
        if way == "autocast" and dtype is torch.bfloat16:
            with torch.autocast(DEVICE.type, dtype):
                out, _ = mlp(x)
        else:
            copies = {name: p.to(dtype) for name, p in mlp.named_parameters()}
            out, _ = torch.func.functional_call(mlp, copies, x.to(dtype))
        return [out.detach(), *torch.autograd.grad(out.sum(), weights)]

    with switch.force_reference():
        truth, eager = run(torch.float64), run(torch.bfloat16)
    with switch.force_kernels():
        fused = run(torch.bfloat16)
    for result, plain, exact in zip(fused, eager, truth, strict=True):
        assert result.dtype == plain.dtype
        assert_as_accurate(result, plain, exact, 1e-2 * float(exact.abs().max()))


@needs_kernels
def test_a_block_compiles_to_one_graph_with_the_kernels():
    encoder = make_encoder()
    block, tokens = encoder.block1[0], torch.randn(1, 4, 4, 4, device=DEVICE)
    torch._dynamo.reset()
    with switch.force_kernels():
        wanted = block(tokens, None)
        found = torch.compile(block, backend="aot_eager", fullgraph=True)(tokens, None)
    torch._dynamo.reset()
    assert all(map(torch.equal, found[:2], wanted[:2]))
