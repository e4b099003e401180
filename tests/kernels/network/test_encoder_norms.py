"""A Mix Transformer whose norms run as kernels against one in plain PyTorch."""

import copy

import pytest
import torch
from torch import nn

from fastseg import kernels
from fastseg.kernels.common.stand_ins import with_gradient_of
from fastseg.kernels.testing import assert_as_accurate
from fastseg.models.backbones.mit import Backbone, MixTransformer

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("kernels")

# all kinds of norms: of patches, blocks, reduced tokens and levels; a width of no power of two
SMALL = Backbone((16, 32, 48, 64), (2, 1, 1, 1), heads=(1, 2, 3, 4), reductions=(4, 2, 1, 1))
# of a forward pass: patches, twice in each block, reduced tokens, levels
NORMS = 4 + 2 * 5 + 3 + 4


@pytest.fixture(autouse=True)
def same_factors(monkeypatch):
    """The second image loses its branches, in every dtype and on every call."""
    factor = torch.tensor([1.25, 0.0]).view(2, 1, 1, 1)
    monkeypatch.setattr(
        MixTransformer, "draw", lambda self, x: [None, None, *[factor.to(x.device)] * 8]
    )


@pytest.fixture
def encoder(device):
    torch.manual_seed(0)
    network = MixTransformer(SMALL).to(device)
    with torch.no_grad():
        for norm in (m for m in network.modules() if isinstance(m, nn.LayerNorm)):
            norm.weight.normal_(1, 0.2)
            norm.bias.normal_(0, 0.2)
    return network


@pytest.fixture
def images(device):
    return torch.randn(2, 3, 40, 32, generator=torch.Generator().manual_seed(1)).to(device)


def run(network, images):
    """Features of all levels, and the gradients of images and weights."""
    images = images.detach().requires_grad_()
    features = network(images)
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(x.shape, generator=generator).to(x) for x in features]
    return *features, *torch.autograd.grad(features, [images, *network.parameters()], upstream)


def strides(x):
    return [stride for stride, length in zip(x.stride(), x.shape, strict=True) if length > 1]


@pytest.mark.parametrize(
    ("dtype", "slack"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
def test_features_and_all_gradients_are_as_accurate_as_the_definition(
    dtype, slack, encoder, images
):
    encoder, images = encoder.to(dtype), images.to(dtype)
    got = run(encoder, images)
    with kernels.force_reference():
        plain = run(encoder, images)
        exact = run(copy.deepcopy(encoder).double(), images.double())
    for result, eager, truth in zip(got, plain, exact, strict=True):
        assert result.dtype == eager.dtype
        # the order in memory; the stride of an axis of length one says nothing
        assert strides(result) == strides(eager)
        # rounding goes through ten layers: the slack is that of a few, of the largest element
        assert_as_accurate(result, eager, truth, slack * float(truth.detach().abs().max()))


def test_every_norm_is_a_kernel(encoder, images, launched):
    encoder(images)
    assert launched.count("_layer_norm_fwd_kernel") == NORMS


def test_under_autocast_the_stream_and_the_features_are_float32(encoder, images):
    with torch.autocast(images.device.type, torch.bfloat16):
        features = encoder(images)
    assert {x.dtype for x in features} == {torch.float32}
    grads = torch.autograd.grad(sum(x.square().sum() for x in features), encoder.parameters())
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_checkpointing_gives_the_same_bits(encoder, images):
    whole = run(encoder, images)
    encoder.checkpointing = True
    assert all(map(torch.equal, run(encoder, images), whole))


@pytest.mark.parametrize("first", [True, False], ids=["first", "behind-another"])
def test_a_compiled_block_is_one_graph_and_gives_the_same_numbers(first, encoder, images):
    block = encoder.block1[0]
    tokens = encoder.patch_embed1(images).detach().requires_grad_()
    branch = None if first else tokens.detach().cos().requires_grad_()
    factors = (None if first else encoder.draw(images)[2], encoder.draw(images)[3])
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=False)
    weights = dict(block.named_parameters())
    leaves = [tokens, *weights.values()] + ([] if first else [branch])

    def run(call):
        x, y, bias = call(tokens, branch, factors)
        if bias is not None:
            y = with_gradient_of(y, bias)
        return x, y, *torch.autograd.grad((x * y).square().sum(), leaves)

    names = ["x", "y", "tokens", *weights, "branch"]
    for name, found, wanted in zip(names, run(compiled), run(block), strict=False):
        # a compiled graph sums these by torch's kernels
        exact = name not in ("attn.q.bias", "attn.kv.bias", "mlp.fc2.bias")
        if exact:
            assert torch.equal(found, wanted), name
        else:
            scale = float(wanted.abs().max())
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * scale)
