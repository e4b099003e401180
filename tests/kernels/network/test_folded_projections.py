"""The folded projections of the head in Triton against their definition."""

import pytest
import torch
from torch import nn

from fastseg.kernels import folded_projections, reference
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")
from fastseg.kernels.network.head import projections as operators

pytestmark = pytest.mark.usefixtures("kernels")

# E, C of the levels
SHAPES = {
    "odd": (20, [5, 8, 3, 70]),
    "several-tiles": (130, [33, 65]),
    "one-of-each": (1, [1]),
}
SMALL = SHAPES["odd"]
# of the parameters and of the results; slack
DTYPES = {
    "fp32": (torch.float32, torch.float32, 1e-5),
    "fp32-to-bf16": (torch.float32, torch.bfloat16, 2e-2),
    "fp32-to-fp16": (torch.float32, torch.float16, 4e-3),
    "bf16": (torch.bfloat16, torch.bfloat16, 2e-2),
}


def make_parts(shape, dtype=torch.float32):
    e, widths = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    fuse = normal(e, len(widths) * e) / e**0.5
    leaves = [fuse, *(normal(e, c) for c in widths), *(normal(e) for _ in widths)]
    upstream = [*(normal(e, c) for c in widths), normal(e)]
    return [x.to(dtype) for x in leaves], upstream


def run(function, parts, dtype, out, device):
    """Results and all gradients."""
    leaves, upstream = parts
    fuse, *rest = (x.to(device, dtype).requires_grad_() for x in leaves)
    n = len(rest) // 2
    found = function(fuse, rest[:n], rest[n:], out)
    # gradients arrive in the dtype of the results
    grads = [x.to(device, torch.bfloat16).to(y) for x, y in zip(upstream, found, strict=True)]
    return [x.detach() for x in found] + [*torch.autograd.grad(found, [fuse, *rest], grads)]


def check(shape, dtype, out, slack, device):
    parts = make_parts(shape, dtype)
    got = run(folded_projections, parts, dtype, out, device)
    eager = run(reference.folded_projections, parts, dtype, out, device)
    truth = run(reference.folded_projections, parts, torch.float64, torch.float64, device)
    for result, plain, exact in zip(got, eager, truth, strict=True):
        assert result.dtype == plain.dtype
        assert_as_accurate(result, plain, exact, slack * max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize(("dtype", "out", "slack"), DTYPES.values(), ids=DTYPES.keys())
def test_matches_the_definition(dtype, out, slack, device):
    check(SMALL, dtype, out, slack, device)


@pytest.mark.parametrize("shape", list(SHAPES.values())[1:], ids=list(SHAPES)[1:])
def test_other_shapes(shape, device):
    check(shape, torch.float32, torch.float32, 1e-5, device)


def test_launches_and_the_same_bits_again(device, launched):
    parts = make_parts(SMALL)
    first, second = (
        run(folded_projections, parts, torch.float32, torch.bfloat16, device) for _ in range(2)
    )
    names = ["fwd", "bwd_fuse", "bwd"]
    assert launched == 2 * [f"_projections_{name}_kernel" for name in names]
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_other_strides(device):
    fuse, *rest = (x.to(device) for x in make_parts(SMALL)[0])
    n = len(rest) // 2
    wanted = folded_projections(fuse, rest[:n], rest[n:], torch.float32)
    turned = [x.t().contiguous().t() for x in (fuse, *rest[:n])]
    found = folded_projections(turned[0], turned[1:], rest[n:], torch.float32)
    assert all(map(torch.equal, found, wanted))


def test_opcheck_and_one_graph(device):
    leaves = [x.to(device).requires_grad_() for x in make_parts((4, [3, 2]))[0]]
    fuse, *rest = leaves
    args = (fuse, rest[:2], rest[2:], torch.bfloat16)
    torch.library.opcheck(operators._folded_projections, args)
    compiled = torch.compile(folded_projections, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, compiled(*args), folded_projections(*args)))


def test_what_does_not_fit_is_refused(device):
    fuse, weight, bias = torch.zeros(3, 3), nn.Linear(2, 3).weight, torch.zeros(3)
    kind = torch.float32
    for args, message in (
        ((fuse, [], [], kind), "as many weights"),
        ((fuse[:2], [weight], [bias], kind), r"expected fuse \[E, 1 E\]"),
        ((fuse, [weight[:2]], [bias], kind), r"a weight \[3, C\]"),
        ((fuse, [weight], [bias.double()], kind), "one float dtype"),
        ((fuse, [weight], [bias], torch.int64), "results of a float dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            folded_projections(*args)
