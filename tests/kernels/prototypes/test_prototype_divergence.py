"""The prototype divergence in Triton against its definition."""

import pytest
import torch

from fastseg.kernels import reference
from fastseg.kernels.common import switch
from fastseg.kernels.testing import assert_as_accurate
from tests.support.optional_hypothesis import given, settings, st

pytest.importorskip("triton")
from fastseg.kernels.modules import PrototypeDivergence
from fastseg.kernels.prototypes.divergence import prototype_divergence

pytestmark = pytest.mark.usefixtures("kernels")

# student and teacher rows, batch, classes, channels
SHAPES = {
    "level": (2, 4, 2, 25, 32),
    "odd": (3, 3, 1, 7, 33),
    "one-of-each": (1, 1, 1, 1, 1),
    "many-classes": (1, 2, 1, 200, 3),
    "many-channels": (2, 1, 1, 2, 300),
}
OPTIONS = {
    "class": {},
    "class-zero-row-warm": {"absent": "zero_row", "temperature": 2.5},
    "channel-warm": {"axis": "channel", "temperature": 2.5},
}


def make_inputs(shape, device, dtype=torch.float32, seed=0):
    """Student, teacher, counts with absent classes (zero rows), pairing."""
    ms, mt, b, k, c = shape
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 3, (b, k), generator=generator)
    present = (counts > 0)[..., None]
    student = torch.randn(ms, b, k, c, generator=generator) * present
    teacher = torch.randn(mt, b, k, c, generator=generator) * present
    pairing = torch.randint(0, ms, (b, mt), generator=generator)
    return (
        student.to(device, dtype),
        teacher.to(device, dtype),
        counts.to(device),
        pairing.to(device),
    )


def run(divergence, student, *others, **options):
    student = student.detach().requires_grad_()
    value = divergence(student, *others, **options)
    return value.detach(), torch.autograd.grad(value * 3, student)[0] / 3


# exp(x) is (4 + |x|) 2^-24 off on a GPU, |x| up to 10 here, above and below the bar of a softmax;
# quotient and difference add some 2^-24 each
SLACK = 4e-6


def check(student, teacher, counts, pairing, slack=SLACK, **options):
    got = run(prototype_divergence, student, teacher, counts, pairing, **options)
    eager = run(reference.prototype_divergence, student, teacher, counts, pairing, **options)
    truth = run(
        reference.prototype_divergence,
        student.double(), teacher.double(), counts, pairing, **options,
    )  # fmt: skip
    assert got[0].dtype == torch.float32
    assert got[1].dtype == student.dtype
    for result, plain, exact in zip(got, eager, truth, strict=True):
        scale = float(exact.abs().max())
        assert_as_accurate(result, plain, exact, slack * scale)
    return got, eager, truth


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_the_definition(shape, options, device):
    check(*make_inputs(shape, device), **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_strides(dtype, device):
    student, teacher, counts, pairing = make_inputs(SHAPES["odd"], device, dtype)
    student = student.transpose(2, 3).contiguous().transpose(2, 3)
    pairing = torch.stack([pairing, pairing], -1)[..., 0]
    # a gradient in bfloat16 may round the other way
    check(student, teacher.float(), counts.to(torch.uint8), pairing.int(), slack=1e-2)


@pytest.mark.parametrize("axis", ["class", "channel"])
def test_close_prototypes_keep_their_digits(axis, device):
    student, teacher, counts, _ = make_inputs((2, 2, 1, 25, 32), device)
    near = teacher + 1e-3 * student
    pairing = torch.tensor([[0, 1]], device=device)
    got, eager, truth = check(near, teacher, counts, pairing, axis=axis)
    for one, plain, exact in zip(got, eager, truth, strict=True):
        error, others = ((x - exact).abs().max() / exact.abs().max() for x in (one, plain))
        assert error < SLACK
        assert error <= others or others < SLACK


@pytest.mark.parametrize("axis", ["class", "channel"])
def test_distant_prototypes_stay_finite(axis, device):
    student, teacher, counts, pairing = make_inputs(SHAPES["odd"], device)
    check(student * 100, teacher * 30, counts, pairing, slack=1e-5, axis=axis)
    check(student * 1e4, teacher * -1e4, counts, pairing, slack=1e-5, axis=axis)


@pytest.mark.fault("F11")
def test_samples_of_one_class_and_of_none_are_zero(device):
    student, teacher, counts, pairing = make_inputs((2, 2, 2, 5, 4), device)
    counts = counts * 0
    counts[1, 3] = 7
    teacher = teacher * (counts > 0)[..., None]
    value, grad = run(
        prototype_divergence, student * (counts > 0)[..., None], teacher, counts, pairing
    )
    assert value == 0
    assert not grad.any()


def test_rows_that_teach_twice_add_up_and_untaught_rows_get_nothing(device):
    student, teacher, counts, _ = make_inputs((3, 3, 1, 6, 5), device)
    twice = torch.tensor([[1, 0, 1]], device=device)
    _, grad = run(prototype_divergence, student, teacher, counts, twice)
    assert not grad[2].any()
    one, other = (
        run(prototype_divergence, student[1:2], teacher[i : i + 1], counts, twice[:, :1] * 0)[1]
        for i in (0, 2)
    )
    torch.testing.assert_close(grad[1:2], one + other)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    axis=st.sampled_from(["class", "channel"]),
    absent=st.sampled_from(["mask", "zero_row"]),
    scale=st.sampled_from([1e-4, 1.0, 30.0]),
)
def test_it_is_not_negative_zero_for_equals_and_blind_to_order(seed, axis, absent, scale):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, teacher, counts, pairing = make_inputs((2, 3, 1, 6, 5), device, seed=seed)
    options = {"axis": axis, "absent": absent}
    near = teacher[:2] + scale * student
    value = prototype_divergence(near, teacher, counts, pairing, **options)
    assert value >= 0
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).to(device)
    renamed = prototype_divergence(
        near[:, :, order], teacher[:, :, order], counts[:, order], pairing, **options
    )
    torch.testing.assert_close(renamed, value, rtol=1e-4, atol=1e-12)
    own = torch.arange(3, device=device)[None]
    equal, grad = run(prototype_divergence, teacher, teacher, counts, own, **options)
    assert equal < 1e-12
    assert grad.abs().max() < 1e-8


def test_the_operator_is_registered_as_it_behaves(device):
    student, teacher, counts, pairing = make_inputs((2, 3, 2, 4, 3), device)
    torch.library.opcheck(
        torch.ops.fastseg.prototype_divergence.default,
        (student.requires_grad_(), teacher, counts, pairing, "class", "mask", 2.0),
    )


def test_compiles_to_one_graph(device):
    inputs = make_inputs((2, 3, 2, 4, 3), device)
    compiled = torch.compile(prototype_divergence, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(run(compiled, *inputs), run(prototype_divergence, *inputs), strict=True):
        assert torch.equal(got, wanted)


def test_the_module_is_the_function(device):
    inputs = make_inputs((2, 3, 2, 4, 3), device)
    got = PrototypeDivergence("channel", "zero_row", 2.0)(*inputs)
    wanted = prototype_divergence(*inputs, axis="channel", absent="zero_row", temperature=2.0)
    assert torch.equal(got, wanted)


def test_the_definition_serves_float64(device):
    student, teacher, counts, pairing = make_inputs((1, 1, 1, 3, 2), device)
    with switch.force_reference():
        value = prototype_divergence(student.double(), teacher.double(), counts, pairing)
    assert value.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"student": (2, 3, 5)}, {}, r"\(2, 3, 5\)"),
        ({"student": (2, 3, 5, 6)}, {}, r"\(2, 3, 5, 6\)"),
        ({"counts": (5, 3)}, {}, r"\(5, 3\)"),
        ({"pairing": (4, 3)}, {}, r"pairing \[B, Mt\].*\(4, 3\)"),
        ({}, {"axis": "height"}, "'height'"),
        ({}, {"absent": "drop"}, "'drop'"),
        ({}, {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({}, {"dtype": torch.int64}, "floats, got torch.int64"),
        ({}, {"device": "meta"}, "one device.* 'meta'"),
    ],
)
def test_wrong_inputs_are_named(change, options, message, device):
    shapes = {"student": (2, 3, 5, 4), "teacher": (4, 3, 5, 4), "counts": (3, 5), "pairing": (3, 4)}
    shapes |= change
    student = torch.zeros(shapes["student"], dtype=options.pop("dtype", None), device=device)
    teacher = torch.zeros(shapes["teacher"], device=options.pop("device", device))
    counts = torch.ones(shapes["counts"], dtype=torch.int64, device=device)
    pairing = torch.zeros(shapes["pairing"], dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=message):
        prototype_divergence(student, teacher, counts, pairing, **options)
