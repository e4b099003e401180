"""The encoder's attention layer with our kernels, against the layer as it is written."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastseg.kernels.testing import assert_as_accurate
from fastseg.models.backbones.attention import OWN, Attention

pytestmark = pytest.mark.usefixtures("kernels")

HEADS, WIDTH = 2, 32
DTYPES = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 2e-2)}


@pytest.fixture
def layer(device):
    def make(reduction):
        torch.manual_seed(0)
        return Attention(WIDTH, HEADS, reduction).to(device)

    return make


def passes(layer, x, upstream, call=None):
    """The result, and the gradients of the tokens and of every weight."""
    x = x.detach().requires_grad_()
    out, bias = (layer if call is None else call)(x)
    if bias is not None:
        # the sum that follows in a block sees to its gradient
        out = out + (bias - bias.detach())
    return out, *torch.autograd.grad(out, (x, *layer.parameters()), upstream.to(out.dtype))


def tokens(device, size=(2, 6, 10)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*size, WIDTH, generator=generator).to(device) for _ in range(2)]


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize(("dtype", "slack"), DTYPES.values(), ids=DTYPES.keys())
def test_results_and_all_gradients_are_as_accurate(layer, reduction, dtype, slack, device):
    plain = layer(reduction).to(dtype)
    exact, ours = (copy.deepcopy(plain) for _ in range(2))
    ours.backend = OWN
    x, upstream = (t.to(dtype) for t in tokens(device))
    truth = passes(exact.double(), x.double(), upstream.double())
    found = zip(passes(ours, x, upstream), passes(plain, x, upstream), truth, strict=True)
    for result, eager, wanted in found:
        assert_as_accurate(result, eager, wanted, slack * wanted.abs().max().item())


def test_a_compiled_and_a_recomputed_layer_compute_the_same(layer, device, launched):
    ours = layer(2)
    ours.backend = OWN
    x, upstream = tokens(device, (1, 4, 6))
    wanted = passes(ours, x, upstream)
    # of attention, and of the norm of the reduced tokens
    assert len(launched) == 3 + 3
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for call in (compiled, lambda x: checkpoint(ours, x, use_reentrant=False)):
        assert all(map(torch.equal, passes(ours, x, upstream, call), wanted))
    # the checkpoint has a second forward pass
    assert len(launched) == 3 * (3 + 3) + 2
