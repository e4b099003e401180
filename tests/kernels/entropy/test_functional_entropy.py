"""The kernels of functional entropy and of both regularisers against their definitions."""

import pytest
import torch

from fastseg.kernels import reference
from fastseg.kernels.common import switch
from fastseg.kernels.entropy.regularisation import (
    fisher_regulariser,
    functional_entropy,
    profile_regulariser,
    representation_regularisation,
)
from fastseg.kernels.modules import FunctionalEntropy, RepresentationRegularisation
from fastseg.kernels.testing import assert_as_accurate
from tests.support import gpu_arithmetic

if switch.HAS_TRITON:
    from fastseg.kernels.entropy import fisher, profile
    from fastseg.kernels.entropy import value as value_ops

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = {
    "fp32": (torch.float32, 1e-4),
    "fp16": (torch.float16, 1e-3),
    "bf16": (torch.bfloat16, 8e-3),
}  # slack relative to the largest element: one rounding of the result
FORMS = {
    "paper": (fisher_regulariser, reference.fisher_regulariser, {"normalise": True}),
    "paper-height": (fisher_regulariser, reference.fisher_regulariser, {"axis": "height"}),
    "code": (profile_regulariser, reference.profile_regulariser, {}),
    "code-sigma-fixed": (
        profile_regulariser,
        reference.profile_regulariser,
        {"sigma_grad": False, "normalise": True},
    ),
}
SHAPES = {  # m, b, c, h, w, samples; c and h change places where channels are the softmax axis
    "usual": (2, 2, 3, 5, 2, 2),
    "long-axis": (1, 1, 3, 33, 9, 1),
    "six-modalities": (6, 1, 3, 3, 1, 3),
    "two-warps": (1, 1, 3, 300, 1, 2),
}
by_form = pytest.mark.parametrize("form", FORMS)


def normal(*shape, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)


def make_inputs(shape, form, dtype, device):
    m, b, c, h, w, samples = shape
    sides = (2,) if form.startswith("code") else ()
    student, teacher = (normal(m, b, c, h, w, seed=i, device=device).to(dtype) for i in (1, 2))
    return student, teacher, normal(samples, *sides, m, b, c, h, w, seed=3, device=device)


def run(function, student, *args, **options):
    """Value and gradient."""
    student = student.detach().requires_grad_()
    value = function(student, *args, **options)
    return value.detach(), torch.autograd.grad(value * 1.5, student)[0]


def assert_matches(form, student, teacher, noise, slack, **options):
    kernel, definition, more = FORMS[form]
    options |= {"samples": len(noise), **more}
    fused = run(kernel, student, teacher, noise=noise, **options)
    with switch.force_reference():
        eager = run(definition, student, teacher, noise=noise, **options)
        double = (x.double() for x in (student, teacher))
        truth = run(definition, *double, noise=noise.double(), **options)
    for got, plain, exact, limit in zip(fused, eager, truth, (2e-6, slack), strict=True):
        assert_as_accurate(got, plain, exact, limit * exact.abs().max().item() + 1e-30)
        # the paper form's gradient is badly conditioned where student and teacher nearly agree:
        # rounding of log p and log q is magnified there, by ten where it was looked at, and by
        # chance in one of the two: single elements differ, the sum over all of them tells
        error, allowed = ((x.double() - exact).norm() for x in (got, plain))
        assert error <= 2 * allowed + 2e-5 * exact.norm()
    assert fused[0].dtype == torch.float32
    assert fused[1].dtype == student.dtype


@by_form
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape, form, device):
    dtype, slack = DTYPES["fp32"]
    if form == "paper":
        m, b, c, h, w, samples = shape
        shape = (m, b, h, c, w, samples)
    assert_matches(form, *make_inputs(shape, form, dtype, device), slack)


@by_form
@pytest.mark.parametrize(("dtype", "slack"), [DTYPES["fp16"], DTYPES["bf16"]], ids=["fp16", "bf16"])
def test_low_precision_matches_reference(dtype, slack, form, device):
    # normalised, because the code form's own gradients overflow float16
    inputs = make_inputs(SHAPES["usual"], form, dtype, device)
    assert_matches(form, *inputs, slack, normalise=True)


def _layouts(x):
    wide = torch.full((*x.shape[:3], x.shape[3] * 2, x.shape[4] + 3), torch.nan, dtype=x.dtype)
    wide = wide.to(x.device)
    wide[..., ::2, 1:-2] = x
    yield "channels last", x.movedim(2, 4).contiguous().movedim(4, 2)
    yield "height last", x.transpose(3, 4).contiguous().transpose(3, 4)
    yield "a part of a larger map", wide[..., ::2, 1:-2]
    yield "samples first", x.transpose(0, 1).contiguous().transpose(0, 1)
    pixels = torch.nn.functional.pad(x.movedim(2, 4), (1, 2), value=torch.nan)
    yield "some channels of each pixel", pixels[..., 1:-2].movedim(4, 2)


@pytest.mark.parametrize("form", ["paper", "paper-height", "code"])
def test_any_strides_and_a_teacher_of_another_dtype(form, device):
    student, teacher, noise = make_inputs((2, 1, 3, 4, 2, 1), form, torch.float32, device)
    kernel, _, options = FORMS[form]
    options = {"samples": 1, "seed": 5, **options}
    wanted = run(kernel, student, teacher, **options)
    for name, x in _layouts(student):
        got = run(kernel, x, teacher, **options)
        assert torch.equal(got[0], wanted[0]), name  # the noise does not follow the strides
        torch.testing.assert_close(got[1], wanted[1], msg=name)
    assert_matches(form, student.bfloat16(), next(_layouts(teacher))[1], noise, 8e-3)
    strided = noise.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert_matches(form, student, teacher, strided, 1e-4)


@pytest.mark.parametrize("shape", [(2, 2, 3, 4, 2), (1, 1, 3, 1, 1), (2, 1, 1, 4, 2)])
def test_noise_scales_may_be_given(shape, device):
    student, teacher, noise = make_inputs((2, 2, 3, 4, 2, 2), "paper", torch.float32, device)
    scales = tuple(normal(*shape, seed=i, device=device).abs() for i in (4, 5))
    for form in ("paper", "paper-height"):
        assert_matches(form, student, teacher, noise, 1e-4, sigma=scales)


@by_form
def test_without_gradient_the_value_is_the_same(form, device):
    student, teacher, noise = make_inputs((2, 1, 3, 4, 2, 1), form, torch.float32, device)
    kernel, _, options = FORMS[form]
    wanted, _ = run(kernel, student, teacher, noise=noise, samples=1, **options)
    assert torch.equal(kernel(student, teacher, noise=noise, samples=1, **options), wanted)


# edges


def test_channels_that_agree_have_no_slope_and_divide_by_nothing(device):
    # the interpreter's arithmetic refuses a zero divisor, also where the quotient is thrown away
    student, teacher, noise = make_inputs((1, 1, 3, 4, 2, 2), "code", torch.float32, device)
    student[..., 1] = student[:, :, :1, :, 1]
    value, gradient = run(profile_regulariser, student, teacher, noise=noise, samples=2)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()


def test_a_side_without_spread_adds_nothing(device):
    student, teacher, noise = make_inputs((2, 2, 3, 2, 2, 1), "paper", torch.float32, device)
    student[0] = 0
    value, gradient = run(fisher_regulariser, student, teacher, noise=noise, samples=1)
    wanted = reference.fisher_regulariser(
        student.double(), teacher.double(), noise=noise.double(), samples=1
    )
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=0)
    assert gradient.isfinite().all()
    zero = torch.zeros_like(student)
    value, gradient = run(fisher_regulariser, zero, zero, samples=1)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("shape", [(1, 1, 4, 1, 1), (1, 2, 1, 1, 1), (2, 1, 1, 3, 2)])
def test_one_pixel_and_one_channel(shape, device):
    student, teacher = (normal(*shape, seed=i, device=device) for i in (1, 2))
    for form, (kernel, _, options) in FORMS.items():
        value, gradient = run(kernel, student, teacher, samples=2, **options)
        assert value.isfinite(), form
        assert gradient.isfinite().all(), form
        if shape[3:] == (1, 1):  # no spread, or no choice of row
            assert abs(value) < 1e-12, form
            assert gradient.abs().max() < 1e-6, form


def test_channels_that_agree_have_no_spread_to_change(device):
    student, teacher, noise = make_inputs((2, 1, 3, 4, 2, 1), "code", torch.float32, device)
    student[0] = 0.25
    assert_matches("code", student, teacher, noise, 1e-4)
    _, gradient = run(profile_regulariser, student, teacher, noise=noise, samples=1)
    assert gradient.isfinite().all()


@by_form
def test_large_features_stay_finite(form, device):
    inputs = make_inputs((1, 1, 3, 4, 2, 1), form, torch.float32, device)
    value, gradient = run(
        FORMS[form][0], inputs[0] * 200, inputs[1] * -200, noise=inputs[2], samples=1
    )
    assert value.isfinite()
    assert gradient.isfinite().all()


@by_form
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_not_hidden(side, form, device):
    inputs = make_inputs((1, 1, 3, 4, 2, 1), form, torch.float32, device)
    inputs[side][0, 0, 1, 2, 1] = torch.nan
    assert FORMS[form][0](inputs[0], inputs[1], samples=1).isnan()


# functional entropy of values


@pytest.mark.parametrize(("dtype", "slack"), DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize(("shape", "dim"), [((3, 5, 2), 1), ((6, 7), 0), ((4,), -1), ((300, 1), 1)])
def test_functional_entropy_matches_reference(shape, dim, dtype, slack, device):
    values = normal(*shape, device=device).exp().to(dtype)
    values[(0,) * len(shape)] = 0
    weights = normal(*values.sum(dim).shape, seed=1, device=device)

    def weighted(function):
        def call(x):
            return (
                function(x, dim) * weights.to(x.dtype if x.dtype == torch.float64 else None)
            ).sum()

        return call

    fused = run(weighted(functional_entropy), values)
    with switch.force_reference():
        eager = run(weighted(reference.functional_entropy), values)
        truth = run(weighted(reference.functional_entropy), values.double())
    away = values > 0  # at zero the slope is minus infinity, and finite by the dtype's rounding
    assert_as_accurate(fused[0], eager[0], truth[0], 1e-5)
    assert_as_accurate(fused[1][away], eager[1][away], truth[1][away], slack)
    torch.testing.assert_close(fused[1], eager[1])


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_functional_entropy_is_homogeneous(factor, device):
    values = normal(5, 40, device=device).exp()
    entropy = functional_entropy(values)
    assert (entropy > 0).all()
    # a division is 2 ulp off on a GPU, and the terms of the entropy cancel in part
    scaled = functional_entropy(values * factor)
    torch.testing.assert_close(scaled, entropy * factor, rtol=1e-5, atol=0)
    close = 1 + normal(5, 40, device=device) * 1e-3
    exact = reference.functional_entropy(close.double())
    torch.testing.assert_close(functional_entropy(close).double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("errors", ["up", "down"])
@pytest.mark.parametrize("level", [0.0, 1e-3, 7.0, 1e4])
def test_functional_entropy_of_equal_values_is_zero_up_to_rounding(
    level, errors, device, monkeypatch
):
    if switch.INTERPRET:
        gpu_arithmetic.emulate(monkeypatch, errors)
    entropy = functional_entropy(torch.full((3, 4), level, device=device))
    # two sums and a division by three, which is 2 ulp off on a GPU: f / f' - 1 is at most 8 2^-24,
    # and the entropy f' times half its square
    assert (entropy >= 0).all()
    assert (entropy <= 32 * 2**-48 * level).all()


# the levels, and how the operators are registered


@pytest.mark.parametrize("form", ["paper", "code", "code-normalised"])
def test_levels_add_up_and_draw_their_own_noise(form, device):
    levels = [[normal(1, 1, 2, 3, 2, seed=i, device=device)] * 2 for i in (1, 2)]
    student, teacher = ([x.clone().requires_grad_() for x in side] for side in levels)
    options = {"form": form, "samples": 1}
    first, second = (
        representation_regularisation(student[:n], teacher[:n], seed=4, **options) for n in (1, 2)
    )
    assert not torch.isclose(second, first * 2, rtol=1e-3)
    module = RepresentationRegularisation(**options)
    seed = torch.tensor([4], device=device)
    assert torch.equal(module(student, teacher, seed), second)
    second.backward()
    assert all(x.grad is not None for x in student)
    assert all(x.grad is None for x in teacher)


@pytest.mark.parametrize("form", ["paper", "paper-height", "code"])
def test_levels_of_one_launch_equal_levels_alone(form, device):
    # softmaxes of other lengths, dtypes and layouts; given noise tells no level from another
    sizes, dtypes = [(5, 2, 2), (17, 2, 1), (2, 1, 3)], [torch.float32, torch.bfloat16]
    kernel, _, options = FORMS[form]
    student, teacher, noise = [], [], []
    for i, (c, h, w) in enumerate(sizes):
        x, t, draws = make_inputs((2, 1, c, h, w, 1), form, dtypes[i % 2], device)
        student.append(list(_layouts(x))[i][1].detach().requires_grad_())
        teacher.append(t.float())
        noise.append(draws)
    chosen = {"form": form[:5].rstrip("-"), "normalise": options.get("normalise", False)}
    if form == "paper-height":
        chosen["axis"] = "height"
    total = representation_regularisation(student, teacher, samples=1, noise=noise, **chosen)
    got = torch.autograd.grad(total * 1.5, student)
    alone = [
        run(kernel, x, t, noise=draws, samples=1, **options)
        for x, t, draws in zip(student, teacher, noise, strict=True)
    ]
    torch.testing.assert_close(total, sum(value for value, _ in alone), rtol=1e-6, atol=0)
    for gradient, x, (_, wanted) in zip(got, student, alone, strict=True):
        assert gradient.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(gradient, wanted)


def test_levels_of_several_batches_are_left_to_the_reference(device):
    student = [normal(1, b, 2, 3, 2, seed=b, device=device) for b in (1, 2)]
    teacher = [normal(1, b, 2, 3, 2, seed=b + 2, device=device) for b in (1, 2)]
    got = representation_regularisation(student, teacher, seed=5)
    assert torch.equal(got, reference.representation_regularisation(student, teacher, seed=5))


@pytest.mark.parametrize("form", ["paper", "code"])
def test_compiles_into_one_graph(form, device):
    student = [normal(1, 1, 2, 3, 2, device=device).requires_grad_()]
    teacher = [normal(1, 1, 2, 3, 2, seed=1, device=device)]

    def step(student, teacher, seed):
        return representation_regularisation(student, teacher, seed=seed, form=form) * 2

    seed = torch.tensor([4], device=device)
    wanted = step(student, teacher, seed)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = compiled(student, teacher, seed)
    grads = [torch.autograd.grad(value, student)[0] for value in (got, wanted)]
    assert torch.equal(got, wanted)
    torch.testing.assert_close(*grads)


def test_opcheck(device):
    x, t = ([normal(1, 1, 2, 3, n, seed=i + n, device=device) for n in (2, 1)] for i in (1, 4))
    seed = torch.tensor([4], device=device)
    channels_last = [y.movedim(2, 4).contiguous().movedim(4, 2).requires_grad_() for y in x]
    sigma = [normal(1, 1, 2, 1, 1, device=device).abs()]
    noise = [normal(1, 1, 1, 2, 3, 2, device=device)]
    for args in (
        (channels_last, t, [], [], [], seed, [1, 3], 1, 2, True, True),
        (x[:1], t[:1], sigma, sigma, noise, seed, [1], 1, 3, False, False),
    ):
        torch.library.opcheck(fisher._fisher_regulariser, args)
    args = (channels_last, t, [], seed, [1, 3], [0.5, 1.0], 1, True, False, True)
    torch.library.opcheck(profile._profile_regulariser, args)
    _, *rest = profile._profile_regulariser(*args)
    upstream = torch.ones(2, device=device)
    torch.library.opcheck(profile._profile_gradient, (x, upstream, *(y.detach() for y in rest)))
    _, *rest = fisher._fisher_regulariser(x, t, [], [], [], seed, [1, 3], 1, 2, True, True)
    torch.library.opcheck(fisher._fisher_gradient, (x, upstream, *rest, 2))
    values = normal(2, 3, 2, device=device).exp()
    torch.library.opcheck(value_ops._functional_entropy, (values.requires_grad_(),))
    args = (values.detach(), torch.ones(2, 2, device=device))
    torch.library.opcheck(value_ops._functional_entropy_gradient, args)


# who serves what, and errors


def test_float64_and_the_cpu_are_left_to_the_reference():
    student = [normal(1, 2, 3, 4, 2).double()]
    teacher = [normal(1, 2, 3, 4, 2, seed=1).double()]
    with switch._in_mode("auto"):
        for x, t in ((student, teacher), ([student[0].float()], [teacher[0].float()])):
            for form in ("paper", "code", "code-normalised"):
                got = representation_regularisation(x, t, seed=torch.tensor([5]), form=form)
                wanted = reference.representation_regularisation(x, t, seed=5, form=form)
                assert torch.equal(got, wanted)
        got = fisher_regulariser(student[0], teacher[0], seed=3)
        assert torch.equal(got, reference.fisher_regulariser(student[0], teacher[0], seed=3))
        values = torch.rand(3, 4)
        assert torch.equal(FunctionalEntropy(1)(values), reference.functional_entropy(values, 1))


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (torch.zeros(2, 2, 5, 4), {}, r"\[M, B, C, h, w\].*\(2, 2, 5, 4\)"),
        (torch.zeros(2, 2, 5, 4, 0), {}, "none of it 0"),
        (torch.zeros(1, 1, 2, 2, 3), {}, "of one shape"),
        (torch.zeros(1, 1, 2, 2, 2), {"samples": 0}, "at least 1, got 0"),
        (torch.zeros(1, 1, 2, 2, 2), {"noise": torch.zeros(3)}, r"noise of .*got \(3,\)"),
        (torch.zeros(1, 1, 2, 2, 2, dtype=torch.int32), {}, "float features, got torch.int32"),
        (torch.zeros(1, 1, 2, 2, 2), {"seed": torch.zeros(2)}, r"one int64, got .*\(2,\)"),
        (torch.zeros(1, 1, 2, 2, 2, device="meta"), {}, "on one device.*meta"),
    ],
)
def test_wrong_arguments_are_named(student, options, message, device):
    student = student if student.is_meta else student.to(device)
    teacher = torch.zeros(1, 1, 2, 2, 2, device=device)
    if "of one shape" not in message and not student.is_meta:
        teacher = torch.zeros_like(student, dtype=torch.float32)
    for kernel in (fisher_regulariser, profile_regulariser):
        with pytest.raises(ValueError, match=message):
            kernel(student, teacher, **options)


def test_wrong_options_are_named(device):
    x = torch.zeros(1, 1, 2, 2, 2, device=device)
    with pytest.raises(ValueError, match="'width'"):
        fisher_regulariser(x, x, axis="width")
    for wrong in (torch.ones((), device=device), torch.ones(1, 1, 3, 1, 1, device=device)):
        with pytest.raises(ValueError, match="broadcast"):
            fisher_regulariser(x, x, sigma=(wrong, wrong))
    with pytest.raises(ValueError, match="standard deviation"):
        profile_regulariser(x[:, :, :1], x[:, :, :1], samples=1)
    with pytest.raises(ValueError, match="'both'"):
        representation_regularisation([x], [x], form="both")
    with pytest.raises(ValueError, match="got 1, 2 and none"):
        representation_regularisation([x], [x, x])
    with pytest.raises(ValueError, match="got 1, 1 and 2"):
        representation_regularisation([x], [x], noise=[x, x])
    with pytest.raises(ValueError, match="at least one sample"):
        functional_entropy(torch.ones(0, 3, device=device))
    with pytest.raises(ValueError, match=r"float values, got torch\.int64"):
        functional_entropy(torch.ones(3, dtype=torch.int64, device=device))
