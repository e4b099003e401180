"""Queries, keys and values apart: the kernel behind their gradients against the definition."""

import pytest
import torch

from fastseg import kernels
from fastseg.kernels import reference
from fastseg.kernels.common.row_tiles import summing_programs
from fastseg.kernels.common.stand_ins import stand_ins
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")
from fastseg.kernels.network import split_tokens as module

pytestmark = pytest.mark.usefixtures("kernels")

# images, queries, keys, heads and channels of a head; of all backbones, then what else may come
SHAPES = {
    **{f"{h}x{d}": (2, 9, 4, h, d) for h, d in ((1, 16), (1, 32), (5, 32), (8, 32), (8, 64))},
    "one": (1, 1, 1, 1, 1),
    "odd": (3, 37, 5, 3, 11),
    "programs": (2, 700, 40, 1, 32),
}
DTYPES = {
    "fp32": (torch.float32, 1e-6),
    "fp16": (torch.float16, 1e-3),
    "bf16": (torch.bfloat16, 1e-2),
}
ONE = ["_split_tokens_bwd_kernel"]


def make_inputs(shape, dtype, device):
    """Queries, keys and values, both biases, and gradients of queries, keys and values."""
    n, length, keys, heads, d = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(n, length, heads, d), (n, keys, 2, heads, d), (heads * d,), (2 * heads * d,)]
    sizes += [sizes[0], (n, keys, heads, d), (n, keys, heads, d)]
    return [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]


def run(function, inputs, apart=True, stand=False):
    q, kv, *biases = (x.detach().requires_grad_() for x in inputs[:4])
    constants = biases
    if stand:
        n, length, heads, d = q.shape
        counts = [summing_programs(n * rows, heads * d)[0] for rows in (length, kv.shape[1])]
        constants = stand_ins([[bias] for bias in biases], counts)
    out = function(q, kv, *constants, apart=apart)
    upstream = inputs[4:] if apart else [inputs[4], torch.stack(inputs[5:], 2)]
    return *out, *torch.autograd.grad(out, [q, kv, *biases], upstream)


CASES = [(shape, "fp32", True) for shape in SHAPES]
CASES += [("odd", dtype, apart) for dtype in ("fp16", "bf16") for apart in (True, False)]


@pytest.mark.parametrize(("shape", "kind", "apart"), [*CASES, ("5x32", "bf16", False)])
def test_values_and_gradients(shape, kind, apart, device, launched):
    dtype, slack = DTYPES[kind]
    inputs = make_inputs(SHAPES[shape], dtype, device)
    found = run(kernels.split_tokens, inputs, apart, stand=True)
    assert launched == [*ONE, "_row_sums_kernel"]
    eager = run(reference.split_tokens, inputs, apart)
    truth = run(reference.split_tokens, [x.double() for x in inputs], apart)
    for result, plain, exact in zip(found, eager, truth, strict=True):
        assert result.dtype == plain.dtype
        scale = max(1.0, float(exact.detach().abs().max()))
        assert_as_accurate(result, plain, exact, slack * scale)
    # nothing is rounded but the sums
    assert all(map(torch.equal, found[:-2], eager[:-2]))


def test_results_repeat_bit_by_bit(device):
    inputs = make_inputs(SHAPES["odd"], torch.bfloat16, device)
    both = (run(kernels.split_tokens, inputs, stand=True) for _ in range(2))
    assert all(map(torch.equal, *both))


@pytest.mark.parametrize("layout", ["heads-first", "expanded", "part-of-more"])
def test_gradients_of_any_strides(layout, device):
    inputs = make_inputs((2, 5, 3, 2, 16), torch.float32, device)
    change = {
        "heads-first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": lambda x: x[:1].expand_as(x),
        "part-of-more": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    }[layout]
    inputs[4:] = map(change, inputs[4:])
    found = run(kernels.split_tokens, inputs, stand=True)
    for result, wanted in zip(found, run(reference.split_tokens, inputs), strict=True):
        torch.testing.assert_close(result, wanted)


def test_without_biases_keys_and_values_come_together(device, launched):
    q, kv, _, _, *upstream = make_inputs((2, 5, 3, 2, 16), torch.float32, device)
    kv.requires_grad_()
    out = kernels.split_tokens(q, kv)
    (grad,) = torch.autograd.grad(out[1:], kv, upstream[1:])
    assert torch.equal(grad, torch.stack(upstream[1:], 2))
    assert launched == ONE
    assert kernels.split_tokens(q, kv, apart=False)[1] is kv


def test_parameters_and_stand_ins_of_other_sizes_have_their_gradients(device, launched):
    inputs = make_inputs((2, 700, 4, 1, 16), torch.float32, device)
    wanted = run(kernels.split_tokens, inputs)
    q, kv, *biases = (x.detach().requires_grad_() for x in inputs[:4])
    out = kernels.split_tokens(q, kv, *stand_ins([[bias] for bias in biases], [2, 5]))
    found = torch.autograd.grad(out, [q, kv, *biases], inputs[4:])
    for result, exact in zip(found, wanted[3:], strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-5, atol=1e-4)


def test_the_definition_serves_what_the_kernel_does_not(device, launched):
    empty = [x.requires_grad_() for x in make_inputs((0, 5, 3, 2, 16), torch.float32, device)]
    for q, kv in ([empty[0], empty[1]],):
        out = kernels.split_tokens(q, kv)
        assert [x.shape for x in out] == [(0, 5, 2, 16), (0, 3, 2, 16), (0, 3, 2, 16)]
    q, kv, *_ = make_inputs((1, 5, 3, 2, 16), torch.float32, device)
    with torch.no_grad():
        assert kernels.split_tokens(q.requires_grad_(), kv)[0] is q
    with pytest.raises(ValueError, match="expected queries"):
        kernels.split_tokens(q, kv[:, :, :1])
    assert launched == []


def test_it_is_an_operator(device):
    q, kv, *_ = make_inputs((2, 5, 3, 2, 16), torch.float32, device)
    k, v = kv.unbind(2)
    torch.library.opcheck(module._split_tokens_bwd, (q, k, v, True, True, True))
    torch.library.opcheck(module._split_tokens_bwd, (q, k, v, False, True, False))


def test_the_definition_has_the_right_gradient():
    q, kv, *_ = make_inputs((1, 2, 2, 1, 3), torch.float64, "cpu")
    with kernels.force_reference():
        out = run(kernels.split_tokens, make_inputs((1, 2, 2, 1, 3), torch.float64, "cpu"))
        assert torch.autograd.gradcheck(
            kernels.split_tokens, (q.requires_grad_(), kv.requires_grad_())
        )
    upstream = make_inputs((1, 2, 2, 1, 3), torch.float64, "cpu")[4:]
    torch.testing.assert_close(out[5], upstream[0].sum((0, 1)).flatten())
    torch.testing.assert_close(out[6], torch.stack(upstream[1:], 2).sum((0, 1)).flatten())
