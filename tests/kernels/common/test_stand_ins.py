"""Stand-ins for parameters: the sums of many layers' gradients by one launch."""

import pytest
import torch

from fastseg.kernels.common.stand_ins import are_wanted, stand_ins, with_gradient_of
from fastseg.kernels.common.switch import force_kernels, force_reference
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")
from fastseg.kernels.common import row_sums as sums

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = {"one": (1, 1), "odd": (7, 33), "tiles": (600, 20), "wide": (3, 128)}


def normal(*shape, seed, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_matrices_of_any_size_and_stride(dtype, device, launched):
    matrices = [normal(*size, seed=i, device=device) for i, size in enumerate(SIZES.values())]
    matrices += [normal(40, 3, 16, seed=9, device=device)[:, 1]]
    matrices += [normal(16, 40, seed=9, device=device).T]
    found = sums.row_sums(matrices, [dtype] * len(matrices))
    assert launched == ["_row_sums_kernel"]
    for x, result in zip(matrices, found, strict=True):
        assert result.dtype == dtype
        exact = x.double().sum(0)
        slack = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert_as_accurate(result, exact.to(dtype), exact, slack * float(x.abs().sum(0).max()))
    again = sums.row_sums(matrices, [dtype] * len(matrices))
    assert all(map(torch.equal, found, again))


def test_a_sum_does_not_depend_on_what_else_there_is(device, launched):
    many = [normal(300, 24, seed=i, device=device) for i in range(sums.MOST + 3)]
    together = sums.row_sums(many, [torch.float32] * len(many))
    assert len(launched) == 2
    alone = [sums.row_sums([x], [torch.float32])[0] for x in many]
    assert all(map(torch.equal, together, alone))


def test_it_is_an_operator(device):
    matrices = [normal(5, 4, seed=i, device=device) for i in range(2)]
    torch.library.opcheck(sums._row_sums, (matrices, [0, 2]))


def test_gradients_of_all_groups_come_by_one_launch(device, launched):
    weight, bias, other = (torch.ones(c, device=device, requires_grad=True) for c in (8, 8, 5))
    still, idle = (torch.ones(5, device=device) for _ in range(2))
    short = torch.ones(5, device=device, dtype=torch.bfloat16, requires_grad=True)
    found = stand_ins([[weight, bias], [other, still], [idle], [short]], [3, 2, 4, 6])
    assert [x.shape for x in found] == [(3, 2, 8), (2, 2, 5), (4, 1, 5), (6, 1, 5)]
    assert [x.requires_grad for x in found] == [True, True, False, True]
    grads = [normal(*x.shape, seed=i, device=device) for i, x in enumerate(found)]
    learning = [weight, bias, other, short]
    used = [0, 1, 3]
    got = torch.autograd.grad([found[i] for i in used], learning, [grads[i] for i in used])
    assert launched == ["_row_sums_kernel"]
    wanted = [grads[0][:, 0], grads[0][:, 1], grads[1][:, 0], grads[3][:, 0]]
    for grad, parts, leaf in zip(got, wanted, learning, strict=True):
        assert grad.dtype == leaf.dtype
        torch.testing.assert_close(grad, parts.sum(0).to(leaf.dtype))


def test_what_is_not_used_has_no_gradient(device, launched):
    one, two = (torch.ones(4, device=device, requires_grad=True) for _ in range(2))
    found = stand_ins([[one], [two]], [2, 2])
    (found[0] * 1).backward(torch.ones(2, 1, 4, device=device))
    assert two.grad is None
    assert one.grad.tolist() == [2] * 4
    assert launched == ["_row_sums_kernel"]


@pytest.mark.parametrize("stands", [False, True], ids=["parameter", "stand-in"])
def test_a_constant_has_the_gradient_of_its_tokens(stands, device):
    x = normal(2, 3, 4, seed=0, device=device).requires_grad_()
    bias = torch.ones(4, device=device, requires_grad=True)
    out = with_gradient_of(x, stand_ins([[bias]], [3])[0] if stands else bias)
    assert torch.equal(out, x)
    upstream = normal(2, 3, 4, seed=1, device=device)
    of_x, of_bias = torch.autograd.grad(out, [x, bias], upstream)
    assert torch.equal(of_x, upstream)
    torch.testing.assert_close(of_bias, upstream.sum((0, 1)))


def test_they_are_wanted_where_kernels_serve_and_something_learns(device):
    x = torch.zeros(2, device=device)
    assert are_wanted(x)
    assert not are_wanted(x.double())
    with torch.no_grad():
        assert not are_wanted(x)
    with force_reference():
        assert not are_wanted(x)
    with force_kernels():
        assert are_wanted(x)
