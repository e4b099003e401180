"""LayerNorm with and without a residual sum: the kernels against the definition."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastseg import kernels
from fastseg.kernels import reference
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")
from fastseg.kernels.common import row_tiles
from fastseg.kernels.common.stand_ins import stand_ins
from fastseg.kernels.network import layer_norm_ops as operators

pytestmark = pytest.mark.usefixtures("kernels")

EPS = 1e-6
# the channels of every backbone and level, then what else may come
SHAPES = {
    **{f"C{c}": (2, 3, 2, c) for c in (16, 32, 64, 128, 160, 256, 320, 512, 1024)},
    "odd": (3, 5, 7, 33),
    "one-pixel": (1, 1, 1, 32),
    "one-channel": (2, 3, 1, 1),
    "rows": (70, 5),
    "many-tiles": (3, 7, 9, 64),
}
SLACKS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAUNCHES = ["_layer_norm_fwd_kernel", "_layer_norm_bwd_kernel", "_row_sums_kernel"]
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
        each = (
            (torch.arange(n) % 3 != 2).to(device, dtype).mul(1.25).view(n, *[1] * (len(shape) - 1))
        )
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


class Operators(TorchDispatchMode):
    """The names of the operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **kwargs or {})


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
def test_behind_a_sum_with_factors(shape, device):
    check(make_inputs(shape, device, branch=torch.float32, factor=True))


@pytest.mark.parametrize("name", ["C32", "one-pixel", "one-channel", "rows"])
@pytest.mark.parametrize("branch", [None, torch.float32], ids=["alone", "behind-a-sum"])
def test_without_factors(name, branch, device):
    check(make_inputs(SHAPES[name], device, branch=branch))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("branch", EITHER, ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_are_kept(dtype, branch, weights, device):
    inputs = make_inputs((2, 3, 1, 48), device, dtype, branch, weights, factor=branch is not None)
    got = check(inputs)
    wide = dtype if branch is None else torch.promote_types(dtype, branch)
    results = [wide] if branch is None else [wide, wide]
    leaves = [dtype] if branch is None else [dtype, branch]
    assert [y.dtype for y in got] == [*results, *leaves, weights, weights]
    assert all(y.is_contiguous() for y in got)


def test_under_autocast_the_norm_is_float32_as_torchs_own_on_a_gpu(device):
    for dtype, wide in ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)):
        inputs = make_inputs((2, 2, 2, 32), device, dtype, torch.bfloat16, torch.float32)
        x, branch, _, weight, bias, *_ = inputs
        with torch.autocast(device.type, torch.bfloat16):
            alone = kernels.layer_norm(x, weight, bias, EPS)
            total, normed = kernels.residual_layer_norm(x, branch, None, weight, bias, EPS)
        assert (alone.dtype, total.dtype, normed.dtype) == (torch.float32, wide, torch.float32)
        # that of the stored sum, but not rounded
        assert torch.equal(normed.to(wide), kernels.layer_norm(total, weight, bias, EPS))


LAYOUTS = {
    "planar": lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
    "some-channels": lambda x: torch.cat([x, x], -1)[..., 3 : 3 + x.shape[-1]],
    "every-other-column": lambda x: torch.stack([x, x], 3).flatten(2, 3)[:, :, ::2],
    "every-other-channel": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "turned": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_strides(layout, device):
    x, branch, factor, *affine, above, upstream = make_inputs(
        (3, 2, 4, 16), device, branch=torch.float32, factor=True
    )
    assert layout(x).shape == x.shape
    assert not layout(x).is_contiguous()
    check((layout(x), layout(branch), factor, *affine, layout(above), layout(upstream)))


@pytest.mark.parametrize("programs", [1, 3, 1000])
def test_any_number_of_programs(programs, device, monkeypatch):
    monkeypatch.setattr(row_tiles, "_PROGRAMS", programs)
    monkeypatch.setattr(row_tiles, "_LEAST_TILES", 1)
    check(make_inputs((3, 7, 9, 48), device, branch=torch.float32, factor=True))


def test_results_repeat_bit_by_bit(device):
    inputs = make_inputs(SHAPES["many-tiles"], device, torch.bfloat16, torch.bfloat16, factor=True)
    for first, second in zip(run(kernels, *inputs), run(kernels, *inputs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("offset", [1e3, -1e5])
def test_a_row_far_from_zero_keeps_its_digits(offset, device):
    x, *rest = make_inputs((2, 3, 3, 160), device)
    check((x + offset, *rest))


def test_a_row_of_one_number_gives_the_bias_and_no_gradient(device):
    x, _, _, weight, bias, *_ = make_inputs((2, 2, 2, 33), device)
    x = torch.full_like(x, 3.7).requires_grad_()
    result = kernels.layer_norm(x, weight, bias, EPS)
    torch.testing.assert_close(result, bias.expand_as(result), rtol=0, atol=1e-6)
    # of a gradient that is the same for all channels behind the weight
    (grad,) = torch.autograd.grad(result, x, (1 / weight).expand_as(x))
    assert grad.abs().max() < 1e-3  # the deviation is eps: rounding times 1000


def test_a_dropped_branch_is_not_there(device):
    inputs = make_inputs((3, 2, 2, 32), device, branch=torch.float32, factor=True)
    total, _, _, dbranch, *_ = run(kernels, *inputs)
    assert torch.equal(total[2], inputs[0][2])
    assert not dbranch[2].any()
    assert dbranch[:2].all()


def test_nan_stays_in_its_row(device):
    x, _, _, weight, bias, *_ = make_inputs((1, 3, 2, 40), device)
    x[0, 1, 0, 7] = float("nan")
    wrong = kernels.layer_norm(x, weight, bias, EPS).isnan().all(-1)
    assert wrong.flatten().tolist() == [False, False, True, False, False, False]


# what a step meets: launches, waits, compilation, checkpoints


def test_launches_and_no_wait(device, launched, monkeypatch):
    inputs = make_inputs((2, 3, 3, 32), device, branch=torch.float32, factor=True)

    def wait(self, *_):
        raise AssertionError("the host waits for a value on the device")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    run(kernels, *inputs)
    monkeypatch.undo()
    assert launched == LAUNCHES


def test_weights_that_do_not_learn_cost_nothing(device, launched):
    x, branch, factor, weight, bias, above, upstream = make_inputs(
        (2, 3, 3, 32), device, branch=torch.float32, factor=True
    )
    leaves = [x.requires_grad_(), branch.requires_grad_()]
    results = kernels.residual_layer_norm(*leaves, factor, weight, bias, EPS)
    frozen = torch.autograd.grad(results, leaves, (above, upstream))
    assert launched == [f"_layer_norm_{way}_kernel" for way in ("fwd", "bwd")]
    learning = run(kernels, x, branch, factor, weight, bias, above, upstream)[2:4]
    assert all(map(torch.equal, frozen, learning))


def bias_inputs(device, dtype=torch.float32, factor=True, **options):
    inputs = make_inputs((3, 7, 3, 48), device, dtype, dtype, factor=factor, **options)
    return (*inputs[:5], torch.linspace(-1, 1, 48).to(device, dtype), *inputs[5:])


def run_with_bias(function, x, branch, factor, weight, bias, branch_bias, above, upstream):
    """Gradients of all tensors, that of branch_bias last."""
    leaves = [y.detach().requires_grad_() for y in (x, branch, weight, bias, branch_bias)]
    results = function(*leaves[:2], factor, *leaves[2:4], EPS, leaves[4])
    return torch.autograd.grad(results, leaves, [above, upstream])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("factor", [False, True], ids=["plain", "factors"])
def test_the_gradient_of_a_bias_in_the_branch(dtype, factor, device, launched):
    inputs = bias_inputs(device, dtype, factor)
    got = run_with_bias(kernels.residual_layer_norm, *inputs)
    assert launched == LAUNCHES
    assert [y.dtype for y in got] == [dtype] * 5
    with kernels.force_reference():
        eager, truth = (
            run_with_bias(kernels.residual_layer_norm, *values)
            for values in (inputs, double(inputs))
        )
    for result, plain, exact in zip(got, eager, truth, strict=True):
        assert_as_accurate(result, plain, exact, SLACKS[dtype] * max(1, float(exact.abs().max())))
    # and all others are as they are without it
    assert all(map(torch.equal, got, run(kernels, *inputs[:5], *inputs[6:])[2:]))


def test_the_definition_gives_the_bias_the_gradient_of_what_was_added():
    x, branch, factor, weight, bias, own, *upstream = double(bias_inputs("cpu"))

    def by_hand(x, branch, factor, weight, bias, eps, branch_bias):
        whole = branch - branch_bias.detach() + branch_bias
        return reference.residual_layer_norm(x, whole, factor, weight, bias, eps)

    inputs = (x, branch, factor, weight, bias, own, *upstream)
    both = (run_with_bias(f, *inputs) for f in (reference.residual_layer_norm, by_hand))
    for found, wanted in zip(*both, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_bias_learns_behind_a_norm_that_does_not(device):
    x, branch, factor, weight, bias, own, *upstream = bias_inputs(device)
    whole = run_with_bias(
        kernels.residual_layer_norm, x, branch, factor, weight, bias, own, *upstream
    )
    own = own.requires_grad_()
    results = kernels.residual_layer_norm(x, branch, factor, weight, bias, EPS, own)
    assert torch.equal(*torch.autograd.grad(results, own, upstream), whole[4])


def with_users(function, dtype, branch, inputs, stand=False):
    """All results, and gradients where both users and the sum have one of their own."""
    x, other, factor, weight, bias, own, above, upstream = inputs
    leaves = [y.detach().requires_grad_() for y in (x, other, weight, bias, own)]
    x, other, weight, bias, own = leaves
    more = {}
    if stand:
        parts = row_tiles.summing_programs(x.shape[:-1].numel(), x.shape[-1])[0]
        more["stand_in"], own = stand_ins([[weight, bias], [own]], [parts, parts])
    second = upstream.flip(0) * 0.5
    if branch:
        results = function(x, other, factor, weight, bias, EPS, own, users=2, **more)
    else:
        results = function(x, None, None, weight, bias, EPS, users=2, **more)
        leaves = [leaves[0], *leaves[2:4]]
    return *results, *torch.autograd.grad(results, leaves, [above, upstream, second])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("branch", [False, True], ids=["alone", "behind-a-sum"])
@pytest.mark.parametrize("stand", [False, True], ids=["by-itself", "stand-ins"])
def test_gradients_of_two_users_and_of_stand_ins(dtype, branch, stand, device, launched):
    inputs = bias_inputs(device, dtype)
    got = with_users(kernels.residual_layer_norm, dtype, branch, inputs, stand)
    assert launched == LAUNCHES
    with kernels.force_reference():
        eager, truth = (
            with_users(kernels.residual_layer_norm, dtype, branch, values)
            for values in (inputs, double(inputs))
        )
    for result, plain, exact in zip(got, eager, truth, strict=True):
        assert result.dtype == dtype
        scale = max(1, float(exact.detach().abs().max()))
        assert_as_accurate(result, plain, exact, SLACKS[dtype] * scale)


def test_a_stand_in_that_does_not_fit_loses_no_gradient(device):
    x, branch, factor, weight, bias, own, *upstream = bias_inputs(device)
    inputs = x, branch, factor, weight, bias, own, *upstream
    wanted = run_with_bias(kernels.residual_layer_norm, *inputs)

    def other_sizes(x, branch, factor, weight, bias, eps, branch_bias):
        affine, branch_bias = stand_ins([[weight, bias], [branch_bias]], [91, 3])
        return kernels.residual_layer_norm(
            x, branch, factor, weight, bias, eps, branch_bias, stand_in=affine
        )

    for found, exact in zip(run_with_bias(other_sizes, *inputs), wanted, strict=True):
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("way", [kernels, reference], ids=["public", "definition"])
def test_users_and_what_needs_a_branch_are_checked(way):
    x, row = torch.zeros(2, 3, 4), torch.ones(4)
    with pytest.raises(ValueError, match="1 or 2 users, got 3"):
        way.residual_layer_norm(x, x, None, row, row, EPS, users=3)
    with pytest.raises(ValueError, match="expected a branch for factor or branch_bias"):
        way.residual_layer_norm(x, None, None, row, row, EPS, row)


def test_without_factors_the_gradient_is_written_once(device):
    inputs = make_inputs((2, 3, 3, 32), device, branch=torch.float32)
    _, _, dx, dbranch, *_ = run(kernels, *inputs)
    assert dx.data_ptr() == dbranch.data_ptr()


@pytest.mark.parametrize("used", [0, 1], ids=["sum", "normalised"])
def test_one_result_alone_may_be_used(used, device):
    inputs = make_inputs((3, 2, 2, 32), device, branch=torch.float32, factor=True)
    upstream = [torch.zeros_like(y) for y in inputs[-2:]]
    upstream[used] = inputs[-2:][used]
    wanted = run(kernels, *inputs[:5], *upstream)[2:]
    x, branch, factor, weight, bias = inputs[:5]
    leaves = [y.detach().requires_grad_() for y in (x, branch, weight, bias)]
    results = kernels.residual_layer_norm(*leaves[:2], factor, *leaves[2:], EPS)
    with Operators() as made:
        grads = torch.autograd.grad(results[used], leaves, upstream[used])
    assert all(map(torch.equal, grads, wanted))
    # what follows a sum is in most cases a norm: nothing is filled for the gradient of the sum
    assert ("zeros_like" in made.names) == (used == 0)


def test_they_are_operators(device):
    x, branch, factor, weight, bias, *_ = make_inputs(
        (2, 2, 1, 5), device, branch=torch.bfloat16, factor=True
    )
    leaves = [y.requires_grad_() for y in (x, branch, weight, bias)]
    x, branch, *affine = leaves
    torch.library.opcheck(operators._layer_norm, (x, *affine, EPS, torch.float32))
    torch.library.opcheck(
        operators._residual_layer_norm, (x, branch, factor, *affine, EPS, torch.float32, None)
    )
    bias = torch.ones(5, device=device, requires_grad=True)
    torch.library.opcheck(
        operators._residual_layer_norm, (x, branch, None, *affine, EPS, torch.float32, bias)
    )


def test_the_definition_has_the_right_gradient():
    inputs = double(make_inputs((2, 2, 1, 5), "cpu", branch=torch.float32, factor=True)[:5])
    x, branch, factor, *affine = (y.requires_grad_() for y in inputs)
    with kernels.force_reference():
        assert torch.autograd.gradcheck(
            lambda *leaves: kernels.residual_layer_norm(*leaves[:2], factor, *leaves[2:], EPS),
            (x, branch, *affine),
        )


# what the definition serves or refuses


@pytest.mark.parametrize(
    ("shape", "eps"),
    [((0, 2, 2, 8), EPS), ((2, 0, 2, 8), EPS), ((1, 1, 5000), EPS), ((2, 3, 8), 0.0)],
    ids=["no-images", "no-tokens", "many-channels", "no-eps"],
)
def test_what_the_kernels_do_not_take_the_definition_does(shape, eps, device, launched):
    x = torch.randn(shape, device=device)
    weight, bias = (torch.ones(shape[-1], device=device).requires_grad_() for _ in range(2))
    alone = kernels.layer_norm(x, weight, bias, eps)
    total, behind = kernels.residual_layer_norm(x, x * 0.5, None, weight, bias, eps)
    assert alone.shape == total.shape == behind.shape == shape
    (alone + behind).sum().backward()
    assert bias.grad.sum() == 2 * alone.numel()
    assert launched == []


@pytest.mark.parametrize("way", [kernels, reference], ids=["public", "definition"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4)}, r"float tokens \[N, ..., C\], got torch.float32 \[4\]"),
        ({"x": torch.zeros(2, 3, 0)}, r"float tokens .*\[2, 3, 0\]"),
        ({"x": torch.zeros(2, 3, 4, dtype=torch.long)}, "float tokens .* torch.int64"),
        ({"weight": torch.ones(5)}, r"weight and bias \[4\] .* got \[5\] and \[4\]"),
        ({"bias": torch.ones(1)}, r"weight and bias \[4\] .* got \[4\] and \[1\]"),
        ({"branch": torch.zeros(2, 1, 4)}, r"branch of floats \[2, 3, 4\] .*\[2, 1, 4\]"),
        ({"branch": torch.zeros(2, 3, 4, dtype=torch.long)}, "branch of floats .*int64"),
        ({"factor": torch.zeros(3)}, r"factor for each of 2 images, got torch.float32 \[3\]"),
        ({"factor": torch.zeros(2, dtype=torch.bool)}, "float factor .*torch.bool"),
        ({"branch_bias": torch.zeros(3)}, r"branch_bias of floats \[4\], got torch.float32 \[3\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(way, change, message):
    fitting = {
        "x": torch.zeros(2, 3, 4), "branch": torch.zeros(2, 3, 4), "factor": torch.ones(2),
        "weight": torch.ones(4), "bias": torch.zeros(4),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        way.residual_layer_norm(**{**fitting, **change}, eps=EPS)
    if change.keys() & {"x", "weight", "bias"}:
        alone = {k: v for k, v in {**fitting, **change}.items() if k not in ("branch", "factor")}
        with pytest.raises(ValueError, match=message):
            way.layer_norm(**alone, eps=EPS)


def test_several_devices_are_refused():
    x, one = torch.zeros(2, 3, 4), torch.ones(4)
    with pytest.raises(ValueError, match=r"one device, got \['cpu', 'meta'\]"):
        kernels.layer_norm(x, one.to("meta"), one, EPS)
    with pytest.raises(ValueError, match=r"one device, got \['cpu', 'meta'\]"):
        kernels.residual_layer_norm(x, x.to("meta"), None, one, one, EPS)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("factor", [False, True], ids=["plain", "factors"])
def test_a_cpu_gets_torchs_own_to_the_last_bit(dtype, factor):
    x, branch, each, weight, bias, above, upstream = make_inputs(
        (3, 2, 2, 24), "cpu", dtype, dtype, factor=factor
    )
    own = torch.nn.LayerNorm(24, eps=EPS, dtype=dtype)
    own.weight.data, own.bias.data = weight, bias

    def by_hand(x, branch):
        total = x + branch if each is None else torch.addcmul(x, branch, each)
        return total, own(total)

    leaves = [y.detach().requires_grad_() for y in (x, branch)]
    results = by_hand(*leaves)
    wanted = [
        *results,
        *torch.autograd.grad(results, [*leaves, *own.parameters()], [above, upstream]),
    ]
    with kernels.force_reference():
        got = run(kernels, x, branch, each, weight, bias, above, upstream)
    assert all(map(torch.equal, got, wanted))
