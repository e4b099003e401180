"""The all-MLP head in Triton against its definition, alone and inside the network's module."""

import pytest
import torch
from torch import nn

from fastseg.kernels import force_kernels, force_reference, mlp_head, reference
from fastseg.kernels.testing import assert_as_accurate
from fastseg.models.heads.mlp import MLPHead

pytest.importorskip("triton")
from fastseg.kernels.network.head import mlp_head as head
from fastseg.kernels.network.head import mlp_head_launch as launch

pytestmark = pytest.mark.usefixtures("kernels")

# batch, E, C, K, sizes of the levels from the first
SHAPES = {
    "odd": (2, 20, 5, 3, [(4, 5), (2, 3), (1, 2)]),
    "classes-and-channels": (1, 70, 40, 20, [(2, 3), (1, 2)]),
    "one-pixel-each": (2, 16, 16, 1, [(1, 1), (1, 1)]),
}
DTYPES = {
    "fp32": (torch.float32, 1e-5),
    "fp16": (torch.float16, 4e-3),
    "bf16": (torch.bfloat16, 2e-2),
}
SMALL = SHAPES["odd"]


def make_parts(shape, dtype=torch.float32, seed=0):
    b, e, c, k, (size, *deeper) = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def level(channels, height, width):
        return normal(b, height, width, channels).to(dtype).permute(0, 3, 1, 2)

    return {
        "levels": [level(e, *s) for s in deeper],
        "leaves": [
            level(c, *size),
            (normal(e, c) / c**0.5).to(dtype),
            (normal(k, e) / e**0.5).to(dtype),
            normal(k).to(dtype),
        ],
        "affine": [1 + normal(e) / 2, normal(e) / 2, normal(e) / 4, 0.5 + normal(e).square()],
        "factor": (torch.rand(b, e, generator=generator) > 0.2) * 1.25,
        "upstream": level(k, *size),
    }


def run(function, parts, dtype, device, training=True, dropped=True):
    """Logits, all gradients and the running statistics."""
    norm = nn.BatchNorm2d(len(parts["affine"][0])).to(device)
    norm = norm.double() if dtype == torch.float64 else norm
    state = norm.state_dict()
    for name, value in zip(state, parts["affine"], strict=False):
        state[name].copy_(value)
    norm.train(training)
    levels, leaves = (
        [x.to(device, dtype).requires_grad_() for x in parts[name]] for name in ("levels", "leaves")
    )
    factor = parts["factor"].to(device, dtype) if dropped else None
    out = function(levels, *leaves, norm, factor)
    inputs = [*levels, *leaves, norm.weight, norm.bias]
    grads = torch.autograd.grad(out, inputs, parts["upstream"].to(device, dtype))
    return [out.detach(), *grads, *norm.buffers()]


def check(parts, dtype, slack, device, **options):
    got = run(mlp_head, parts, dtype, device, **options)
    eager = run(reference.mlp_head, parts, dtype, device, **options)
    truth = run(reference.mlp_head, parts, torch.float64, device, **options)
    for result, plain, exact in zip(got, eager, truth, strict=True):
        assert result.dtype == plain.dtype
        assert_as_accurate(result, plain, exact, slack * max(1.0, float(exact.abs().max())))
    return got


@pytest.mark.parametrize(("dtype", "slack"), DTYPES.values(), ids=DTYPES.keys())
def test_training_matches_the_definition(dtype, slack, device):
    check(make_parts(SMALL, dtype), dtype, slack, device)


@pytest.mark.parametrize("shape", list(SHAPES.values())[1:], ids=list(SHAPES)[1:])
def test_other_shapes_in_bfloat16(shape, device):
    check(make_parts(shape, torch.bfloat16), torch.bfloat16, 2e-2, device)


def test_many_classes_in_float32_are_multiplied_some_at_a_time(device):
    check(make_parts((1, 16, 5, 70, [(2, 3), (1, 2)])), torch.float32, 1e-5, device)


def test_evaluation_with_gradients_takes_the_running_statistics(device):
    parts = make_parts(SMALL)
    *_, mean, var, number = check(parts, torch.float32, 1e-5, device, training=False, dropped=False)
    assert torch.equal(mean.cpu(), parts["affine"][2])
    assert torch.equal(var.cpu(), parts["affine"][3])
    assert number == 0


def test_several_chunks_and_a_mean_far_from_zero(device, monkeypatch):
    monkeypatch.setattr(launch, "_CHUNKS_FWD", 3)
    shape = (1, 16, 5, 3, [(6, 7), (3, 4)])
    assert launch.chunks_bwd(1, 6 * 7) == (2, 32)
    parts = make_parts(shape)
    parts["levels"][0] += 100
    check(parts, torch.float32, 1e-4, device)


@pytest.mark.parametrize(("dtype", "slack"), [DTYPES["fp32"], DTYPES["bf16"]], ids=str)
def test_the_frozen_form(dtype, slack, device):
    parts = make_parts(SMALL, dtype)
    with torch.no_grad():
        got, eager, truth = (
            function(
                [x.to(device, kind) for x in parts["levels"]],
                *(x.to(device, kind) for x in parts["leaves"]),
            )
            for function, kind in (
                (mlp_head, dtype),
                (reference.mlp_head, dtype),
                (reference.mlp_head, torch.float64),
            )
        )
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_as_accurate(got, eager, truth, slack)


def test_launches_and_the_same_bits_again(device, launched):
    parts = make_parts(SMALL, torch.bfloat16)
    first = run(mlp_head, parts, torch.bfloat16, device)
    names = ["sum", "statistics", "logits"]
    names += [f"bwd_{name}" for name in ("sums", "reduce", "maps", "weights")]
    assert launched == [f"_head_{name}_kernel" for name in names] + ["_upsampled_sum_bwd_kernel"]
    second = run(mlp_head, parts, torch.bfloat16, device)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def module_results(forward, features, upstream):
    """Logits, gradients and buffers of a module with dropout."""
    torch.manual_seed(0)
    module = MLPHead([x.shape[1] for x in features], 3, embed_dim=16, dropout=0.3)
    module = module.to(features[0].device)
    features = [x.detach().requires_grad_() for x in features]
    torch.manual_seed(1)
    with forward():
        logits = module(features, module.draw(features))
        (logits * upstream).sum().backward()
    grads = {name: x.grad for name, x in module.named_parameters()}
    grads |= {f"level {i}": x.grad for i, x in enumerate(features, start=1)}
    return {"logits": logits.detach(), **grads, **dict(module.named_buffers())}


def test_the_module_has_the_same_results_and_gradients(device):
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 6), (2, 3), (1, 2), (1, 1)]
    features = [
        torch.randn(2, *size, c, generator=generator).permute(0, 3, 1, 2).to(device)
        for size, c in zip(sizes, (4, 6, 8, 8), strict=True)
    ]
    upstream = torch.randn(2, 3, 4, 6, generator=generator).to(device)
    plain = module_results(force_reference, features, upstream)
    fused = module_results(force_kernels, features, upstream)
    assert plain.keys() == fused.keys()
    for name, wanted in plain.items():
        torch.testing.assert_close(fused[name], wanted, rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_statistics_of_parts_are_those_of_all_their_pixels(kind, device):
    x = torch.randn(70, 7, 30, generator=torch.Generator().manual_seed(0)).double().to(device)

    def statistics(x):
        var, mean = torch.var_mean(x, (0, 2), correction=0)
        return torch.stack([mean, var, torch.full_like(mean, x.numel() / 7)])

    rows = torch.stack([statistics(part) for part in (x[:1], *x[1:].chunk(69))]).float()
    norm = nn.BatchNorm1d(7, momentum=0.3).to(device, torch.float64)
    norm(x)
    running = torch.zeros(7), torch.ones(7), torch.tensor(2)
    mean, var, batches = (y.to(device, kind if y.is_floating_point() else None) for y in running)
    parts = rows[:, :2], rows[:, 2, 0]  # of processes; those of chunks are contiguous
    found = head._head_statistics(*parts, mean, var, batches, 0.3)
    torch.testing.assert_close(found, statistics(x).float())
    torch.testing.assert_close(mean, norm.running_mean.to(kind))
    torch.testing.assert_close(var, norm.running_var.to(kind))
    assert batches == 3
    again = head._head_statistics(*(x.contiguous() for x in parts), None, None, None, 0.0)
    assert torch.equal(again, found)


def test_opcheck_and_one_graph(device):
    parts = make_parts((1, 16, 4, 2, [(2, 2), (1, 1)]))
    levels, leaves = (
        [x.to(device).requires_grad_() for x in parts[name]] for name in ("levels", "leaves")
    )
    first, projection, weight, bias = leaves
    # the graph below holds all of them
    utils = "test_schema", "test_faketensor"
    constants = levels, first.detach(), projection.detach()
    torch.library.opcheck(head._head_sum, constants, test_utils=utils)
    norm = nn.BatchNorm2d(16).to(device)
    rows = torch.rand(3, 3, 16, device=device)
    running = norm.running_mean, norm.running_var, norm.num_batches_tracked
    constants = rows[:, :2], rows[:, 2, 0], *running
    torch.library.opcheck(head._head_statistics, (*constants, 0.1), test_utils=utils)
    x = torch.rand(1, 2, 2, 16, device=device).permute(0, 3, 1, 2)
    constants = rows[0], norm.weight, norm.bias, None, weight, bias, 1e-5, ""
    args = x, first, projection, *constants
    torch.library.opcheck(head._head_logits, args, test_utils=utils)

    compiled = torch.compile(mlp_head, backend="aot_eager", fullgraph=True)
    results = []
    for function in (mlp_head, compiled):
        norm = nn.BatchNorm2d(16).to(device)
        out = function(levels, *leaves, norm)
        grads = torch.autograd.grad(out.square().sum(), [*levels, *leaves, *norm.parameters()])
        results.append([out.detach(), *grads, *norm.buffers()])
    assert all(map(torch.equal, *results))


def test_what_the_kernels_do_not_serve_takes_the_definition(device):
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * x

    parts = make_parts(SMALL)
    levels, leaves = ([x.to(device) for x in parts[name]] for name in ("levels", "leaves"))
    for norm in (nn.BatchNorm2d(20, affine=False), nn.BatchNorm2d(20, momentum=None), Doubled(20)):
        norm.to(device)
        wanted = reference.mlp_head(levels, *leaves, norm)
        assert torch.equal(mlp_head(levels, *leaves, norm), wanted)
    one = [torch.zeros(shape, device=device) for shape in ((1, 3, 1, 1), (2, 3), (4, 2), (4,))]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        mlp_head([torch.zeros(1, 2, 1, 1, device=device)], *one, nn.BatchNorm2d(2, device=device))


@pytest.mark.parametrize("wrong", ["first", "projection", "weight", "bias", "factor"])
def test_parts_that_do_not_fit_are_refused(wrong):
    shapes = {"first": (1, 3, 2, 2), "projection": (5, 3), "weight": (4, 5), "bias": (4,)}
    shapes |= {"factor": (1, 5)}
    shapes[wrong] = {"first": (2, 3, 2, 2), "factor": (1, 4)}.get(wrong, (7,) * len(shapes[wrong]))
    *leaves, factor = map(torch.zeros, shapes.values())
    with pytest.raises(ValueError, match=r"expected \w+ \["):
        mlp_head([torch.zeros(1, 5, 1, 1)], *leaves, factor=factor)
