"""Attention with spatial reduction: the kernels against the definition."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastseg.kernels import reduced_attention, reference
from fastseg.kernels.network import attention
from fastseg.kernels.testing import assert_as_accurate

# N, L, S, heads, d: a level of mit_nano, of mit_b0 and of mit_b2, several blocks of each kind, and
# sizes that no block divides
SHAPES = {
    "nano": (1, 256, 16, 1, 16),
    "b0": (2, 64, 64, 2, 32),
    "b2": (1, 64, 128, 1, 64),
    "odd": (1, 141, 75, 1, 32),
    "parts": (1, 520, 5, 2, 16),
    "one": (1, 1, 1, 1, 64),
}
DTYPES = {
    "fp32": (torch.float32, 2e-6),
    "fp16": (torch.float16, 1e-3),
    "bf16": (torch.bfloat16, 1e-2),
}


def make_inputs(shape, dtype, device, spread=1.0):
    n, length, keys, heads, d = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((n, length, heads, d), (n, keys, 2, heads, d), (n, length, heads, d))
    q, kv, upstream = (torch.randn(size, generator=generator) for size in sizes)
    return [x.to(dtype).to(device) for x in (spread * q, kv, upstream)]


def both_ways(function, q, kv, upstream):
    q, kv = q.detach().requires_grad_(), kv.detach().requires_grad_()
    out = function(q, kv)
    return out, *torch.autograd.grad(out, (q, kv), upstream)


def in_double(tensors):
    return [x.double() for x in tensors]


def assert_accurate(inputs, slack, function=reduced_attention):
    truth = both_ways(reference.reduced_attention, *in_double(inputs))
    eager = both_ways(reference.reduced_attention, *inputs)
    fused = both_ways(function, *inputs)
    for result, plain, exact in zip(fused, eager, truth, strict=True):
        assert result.dtype == plain.dtype
        assert_as_accurate(result, plain, exact, slack * max(1.0, exact.abs().max().item()))
    return fused


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(("dtype", "slack"), DTYPES.values(), ids=DTYPES.keys())
def test_results_and_gradients_are_as_accurate_as_the_definition(shape, dtype, slack, device):
    results = assert_accurate(make_inputs(shape, dtype, device), slack)
    # as the linear layers take them
    assert all(x.is_contiguous() for x in results)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", ["sliced", "heads first", "channels apart"])
def test_tokens_are_read_where_they_lie(layout, device):
    inputs = make_inputs((2, 70, 40, 2, 16), torch.float32, device)
    if layout == "sliced":
        inputs = [torch.cat([x, x], dim=1)[:, 1 : 1 + x.shape[1]] for x in inputs]
        inputs = [x + i for i, x in enumerate(inputs)]
    elif layout == "heads first":
        inputs = [x.transpose(-3, -2).contiguous().transpose(-3, -2) for x in inputs]
    else:
        inputs = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in inputs]
    assert_accurate(inputs, 2e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("spread", [30.0, 0.0], ids=["far", "equal"])
def test_scores_may_be_far_apart_or_equal(spread, device):
    # a score of up to some 500 over sqrt(d): its exponential alone would be infinite
    assert_accurate(make_inputs((1, 40, 70, 1, 16), torch.float32, device, spread), 2e-5)


@pytest.mark.usefixtures("kernels")
def test_the_middle_steps_are_those_of_the_formula(device):
    q, kv, _ = make_inputs((1, 130, 33, 2, 16), torch.float32, device)
    _, lse = attention.attention_forward(q, kv)
    scores = torch.einsum("nlhd,nshd->nhls", q.double(), kv[:, :, 0].double()) / math.sqrt(16)
    wanted = scores.logsumexp(-1) / math.log(2)
    torch.testing.assert_close(lse.double(), wanted, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("shape", "sums"), [((2, 70, 40, 2, 16), 0), ((1, 520, 5, 2, 16), 1)])
def test_three_or_four_launches_that_repeat(shape, sums, device, launched):
    inputs = make_inputs(shape, torch.float16, device)
    first, again = (both_ways(reduced_attention, *inputs) for _ in range(2))
    assert all(map(torch.equal, first, again))
    parts = ["fwd", "query", "key", *["sum"] * sums]
    assert launched == [f"_reduced_attention_{part}_kernel" for part in parts] * 2


def test_ranges_of_queries_fill_a_gpu_and_depend_on_the_sizes_alone():
    dtype = torch.bfloat16
    for heads, length, keys, programs in ((1, 65536, 1024, 8), (8, 1024, 1024, 8)):
        tile = attention.tiles(dtype, 32)["key"]
        parts, chunk = attention.parts_of(8, heads, length, keys, tile)
        assert chunk % tile["BLOCK_L"] == 0
        assert (parts - 1) * chunk < length <= parts * chunk
        assert 500 <= parts * programs * 8 * heads <= 528
    # few queries are not worth a range each
    assert attention.parts_of(1, 1, 300, 16, tile)[0] == 2


@pytest.mark.usefixtures("kernels")
def test_it_is_an_operator(device):
    from fastseg.kernels.network.attention import _reduced_attention

    q, kv, _ = make_inputs((1, 5, 3, 1, 16), torch.float32, device)
    torch.library.opcheck(_reduced_attention, (q.requires_grad_(), kv.requires_grad_()))


@pytest.mark.usefixtures("kernels")
def test_it_is_compiled_in_one_graph_and_computed_again(device):
    inputs = make_inputs((1, 20, 10, 1, 16), torch.float32, device)
    wanted = both_ways(reduced_attention, *inputs)

    def again(q, kv):
        return checkpoint(reduced_attention, q, kv, use_reentrant=False)

    compiled = torch.compile(reduced_attention, backend="aot_eager", fullgraph=True)
    for function in (again, compiled):
        assert all(map(torch.equal, both_ways(function, *inputs), wanted))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("allowed", [False, True])
def test_float32_is_exact_unless_torch_may_use_tf32(allowed, device, request):
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    request.addfinalizer(lambda: setattr(matmul, "allow_tf32", before))
    matmul.allow_tf32 = allowed
    inputs = make_inputs((1, 33, 20, 1, 16), torch.float32, device)
    truth = both_ways(reference.reduced_attention, *in_double(inputs))
    fused = both_ways(reduced_attention, *inputs)
    errors = [(x.double() - y).abs().max().item() for x, y in zip(fused, truth, strict=True)]
    assert all(1e-5 < error < 1e-2 if allowed else error < 5e-6 for error in errors), errors


@pytest.mark.parametrize("heads", [(2, 8), (1, 24)], ids=str)
@pytest.mark.usefixtures("kernels")
def test_other_heads_take_the_definition(heads, device, launched):
    inputs = make_inputs((1, 7, 5, *heads), torch.float32, device)
    fused = both_ways(reduced_attention, *inputs)
    assert all(map(torch.equal, fused, both_ways(reference.reduced_attention, *inputs)))
    assert launched == []


def test_the_definition_has_the_right_gradient_and_is_torchs():
    q, kv, _ = make_inputs((2, 5, 4, 2, 3), torch.float64, "cpu")
    out = reduced_attention(q, kv)
    k, v = (x.transpose(1, 2) for x in kv.unbind(2))
    theirs = torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k, v)
    torch.testing.assert_close(out, theirs.transpose(1, 2), rtol=1e-12, atol=1e-12)
    inputs = (q.requires_grad_(), kv.requires_grad_())
    assert torch.autograd.gradcheck(reduced_attention, inputs)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(0, 4, 3, 2, 16), (2, 0, 3, 2, 16)], ids=["images", "queries"])
def test_no_images_or_queries_give_an_empty_result(shape, device):
    out, grad_q, grad_kv = both_ways(reduced_attention, *make_inputs(shape, torch.float32, device))
    assert out.shape == grad_q.shape == (*shape[:2], *shape[3:])
    assert not grad_kv.any()


@pytest.mark.parametrize(
    ("q", "kv"),
    [
        ((1, 4, 2, 16), (1, 0, 2, 2, 16)),
        ((1, 4, 2, 16), (1, 3, 3, 2, 16)),
        ((1, 4, 2, 16), (2, 3, 2, 2, 16)),
        ((1, 4, 2, 16), (1, 3, 2, 2, 32)),
        ((1, 4, 2, 0), (1, 3, 2, 2, 0)),
        ((4, 2, 16), (1, 3, 2, 2, 16)),
    ],
    ids=str,
)
def test_wrong_shapes_are_refused(q, kv):
    with pytest.raises(ValueError, match=r"queries \[N, L, heads, d\] and keys and values"):
        reduced_attention(torch.zeros(q), torch.zeros(kv))


def test_tokens_of_two_dtypes_are_refused():
    q, kv = torch.zeros(1, 4, 2, 16), torch.zeros(1, 3, 2, 2, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"one float dtype .* got torch.float32 on cpu"):
        reduced_attention(q, kv)
