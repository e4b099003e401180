"""LayerNorm with and without a residual sum: the kernels against the definition."""

import pytest
import torch

from fastseg import kernels
from fastseg.kernels import reference
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")
from fastseg.kernels.network import layer_norm as operators

pytestmark = pytest.mark.usefixtures("kernels")

EPS = 1e-6
# the channels of every backbone and level, then what else may come
SHAPES = {
    **{f"C{c}": (2, 3, 2, c) for c in (16, 32, 64, 128, 160, 256, 320, 512, 1024)},
    "odd": (3, 5, 7, 33),
    "one-pixel": (1, 1, 1, 32),
    "one-channel": (2, 3, 1, 1),
    "rows": (70, 5),
    "many-tiles": (3, 13, 17, 64),
}
SLACKS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EITHER = [None, *DTYPES.values()]  # dtype of the branch, None for no branch


def make_inputs(shape, device, dtype=torch.float32, branch=None, weights=None, factor=False):
    """x, branch, factor, weight, bias, and upstream gradients of the sum and the normalised."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, dtype):
        return torch.randn(shape, generator=generator).to(device, dtype)

    n, c = shape[0], shape[-1]
    x = normal(*shape, dtype=dtype) * 2 + 0.5
    weight = normal(c, dtype=weights or dtype) * 0.5 + 1
    bias = normal(c, dtype=weights or dtype)
    other = None if branch is None else normal(*shape, dtype=branch)
    each = None
    if factor:
        # one image in three is dropped
        each = (torch.arange(n) % 3 != 2).to(device, dtype).mul(1.25).view(n, *[1] * (len(shape) - 1))
    wide = dtype if branch is None else torch.promote_types(dtype, branch)
    return x, other, each, weight, bias, normal(*shape, dtype=wide), normal(*shape, dtype=wide)


def run(functions, x, branch, factor, weight, bias, above, upstream):
    """Results and the gradients of everything that has one."""
    leaves = [None if y is None else y.detach().requires_grad_() for y in (x, branch, weight, bias)]
    x, branch, weight, bias = leaves
    if branch is None:
        results, grads = (functions.layer_norm(x, weight, bias, EPS),), (upstream,)
    else:
        results = functions.residual_layer_norm(x, branch, factor, weight, bias, EPS)
        grads = (above, upstream)
    wanted = [y for y in leaves if y is not None]
    grads = [g.to(y.dtype) for g, y in zip(grads, results, strict=True)]
    return *results, *torch.autograd.grad(results, wanted, grads)


def double(inputs):
    return [None if y is None else y.double() for y in inputs]


def check(inputs):
    got = run(kernels, *inputs)
    # of the coarsest dtype: what is normalised is the sum as it is stored
    slack = max(SLACKS[y.dtype] for y in got)
    with kernels.force_reference():
        # torch has no form for a float32 weight beside short tokens on every device
        own = [inputs[0], *inputs[1:3], *(y.to(inputs[-1].dtype) for y in inputs[3:5]), *inputs[5:]]
        eager, truth = run(kernels, *own), run(kernels, *double(inputs))
    for result, plain, exact in zip(got, eager, truth, strict=True):
        # sums over all rows grow with their number
        scale = max(1.0, float(exact.detach().abs().max()))
        assert_as_accurate(result, plain, exact, slack * scale)
    return got


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_alone(shape, device):
    check(make_inputs(shape, device))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("factor", [False, True], ids=["plain", "factors"])
def test_behind_a_sum(shape, factor, device):
    check(make_inputs(shape, device, branch=torch.float32, factor=factor))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("branch", EITHER, ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_are_kept(dtype, branch, weights, device):
    inputs = make_inputs((2, 3, 5, 48), device, dtype, branch, weights, factor=branch is not None)
    got = check(inputs)
    wide = dtype if branch is None else torch.promote_types(dtype, branch)
    results = [wide] if branch is None else [wide, wide]
    leaves = [dtype] if branch is None else [dtype, branch]
    assert [y.dtype for y in got] == [*results, *leaves, weights, weights]
    assert all(y.is_contiguous() for y in got)
