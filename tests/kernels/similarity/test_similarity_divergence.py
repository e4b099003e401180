"""The similarity divergence in Triton against its definition."""

import pytest
import torch

from fastseg.kernels.common import switch
from fastseg.kernels.reference import similarity as reference
from fastseg.kernels.testing import assert_as_accurate
from tests.support.optional_hypothesis import example, given, settings, st

pytest.importorskip("triton")
from fastseg.kernels.modules import SimilarityDivergence
from fastseg.kernels.similarity.divergence import similarity_divergence

pytestmark = pytest.mark.usefixtures("kernels")

# modalities, batch, (h, w), (H, W)
SHAPES = {
    "level": (3, 2, (8, 8), (32, 32)),
    "odd": (2, 1, (5, 7), (13, 17)),
    "one-pixel": (1, 1, (1, 1), (1, 1)),
    "wide": (1, 1, (2, 300), (4, 600)),
    "several-tiles": (1, 1, (70, 31), (70, 31)),
}
OPTIONS = {
    "row": {},
    "map": {"axis": "map"},
    "row-one-cool": {"ignored": "one", "temperature": 0.2},
    "map-one": {"axis": "map", "ignored": "one"},
}
CLASSES = 4


def make_inputs(shape, device, step=1.0, seed=0):
    """Student and teacher maps a step apart, labels whose first rows have no class."""
    m, b, size, full = shape
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.rand(m, b, *size, generator=generator) * 2 - 1
    other = torch.rand(m, b, *size, generator=generator) * 2 - 1
    labels = torch.randint(-1, CLASSES + 1, (b, *full), generator=generator)
    labels[:, : full[0] // 4] = 255
    student = teacher + step * (other - teacher)
    return student.to(device), teacher.to(device), labels.to(device), CLASSES


def run(divergence, student, *others, **options):
    student = student.detach().requires_grad_()
    value = divergence(student, *others, **options)
    return value.detach(), torch.autograd.grad(value * 3, student)[0] / 3


# exp(x) is (4 + |x|) 2^-24 off on a GPU, |x| up to 10 here, above and below the bar of a softmax;
# quotient and difference add some 2^-24 each
SLACK = 4e-6


def check(student, teacher, labels, k, slack=SLACK, **options):
    got = run(similarity_divergence, student, teacher, labels, k, **options)
    eager = run(reference.similarity_divergence, student, teacher, labels, k, **options)
    double = student.double(), teacher.double()
    truth = run(reference.similarity_divergence, *double, labels, k, **options)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == student.dtype
    for result, plain, exact in zip(got, eager, truth, strict=True):
        assert_as_accurate(result, plain, exact, slack * float(exact.abs().max()))
    return got, eager, truth


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_the_definition(shape, options, device):
    check(*make_inputs(shape, device), **options)


def test_half_precision_strides_and_selected_modalities(device):
    student, teacher, labels, k = make_inputs(SHAPES["level"], device)
    student = student.bfloat16().transpose(2, 3).contiguous().transpose(2, 3)
    selected = torch.tensor([[True, True, False], [False, True, False]], device=device).T
    # a gradient in bfloat16 may round the other way
    (_, grad), *_ = check(student, teacher.half(), labels, k, slack=1e-2, selected=selected)
    assert not grad[~selected].any()
    assert grad[selected].any()


@pytest.mark.parametrize("axis", ["row", "map"])
@pytest.mark.parametrize("step", [1e-2, 1e-4])
def test_close_maps_keep_their_digits(axis, step, device):
    # differences that float32 holds exactly
    student, teacher, labels, k = make_inputs((1, 1, (8, 256), (8, 256)), device)
    teacher = (teacher * 512).round() / 512
    student = teacher + (student * 64).round() / 64 * step
    student = (student * 2**22).round() / 2**22
    got, _, truth = check(student, teacher, labels, k, axis=axis)
    for one, exact in zip(got, truth, strict=True):
        assert ((one - exact).norm() < 1e-5 * exact.norm()).item()


def test_equal_maps_and_ignored_maps_are_zero(device):
    student, teacher, labels, k = make_inputs(SHAPES["level"], device)
    for options in OPTIONS.values():
        for own, seen in ((teacher, labels), (student, labels | 255)):
            value, grad = run(similarity_divergence, own, teacher, seen, k, **options)
            assert value == 0
            assert not grad.any()


def rounding(student, teacher, labels, axis, temperature):
    """The unit of rounding, and how far it moves log p - log q in each group.

    Labels are those of the maps' pixels.

    It is d - log(1 + M) with d the difference of the logits and M = sum q (exp(d) - 1). The terms
    of M are rounded in proportion to their own size, so the logarithm is off by up to
    c 2^-24 sum q |exp(d) - 1| / (1 + M). In c the exponential counts 4 and, for the rounding of its
    argument of at most 2 / temperature, as much again; growth, weight, total, their quotient,
    products, sums and the logarithm take 12.
    """
    seen = ((labels >= 0) & (labels < CLASSES)).double()
    student, teacher = student.double(), teacher.double()
    if axis == "map":
        student, teacher, seen = (x.flatten(-2) for x in (student, teacher, seen))
    apart = (student - teacher) / temperature
    q = (teacher / temperature).exp() * seen
    q /= q.sum(-1, keepdim=True).where(seen.any(-1, keepdim=True), 1)
    moved = (q * apart.expm1().abs()).sum(-1)
    unit = (16 + 2 / temperature) * 2**-24
    return unit, unit * moved / (q * apart.exp()).sum(-1).where(seen.any(-1), 1)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    axis=st.sampled_from(["row", "map"]),
    temperature=st.floats(0.05, 10),
    step=st.sampled_from([1e-6, 0.1, 1.0]),
)
@example(seed=232, axis="row", temperature=0.125, step=1e-6)
@example(seed=587, axis="row", temperature=0.0625, step=1e-6)
def test_never_negative_and_shift_invariant(seed, axis, temperature, step):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, teacher, labels, k = make_inputs((1, 1, (4, 6), (8, 12)), device, step, seed)
    student, teacher, low = student / 2, teacher / 2, labels[:, ::2, ::2]
    options = {"axis": axis, "temperature": temperature}
    value, grad = run(similarity_divergence, student, teacher, labels, k, **options)
    assert value > 0
    # p - q adds up to zero in every group: its terms are off by their own rounding, and all of them
    # together by that of log p - log q
    groups = (grad if axis == "row" else grad.flatten(2)).double()
    size = groups.abs().sum(-1)
    unit, off = rounding(student, teacher, low, **options)
    assert (groups.sum(-1).abs() <= unit * size + off * temperature).all()
    if step > 1e-3:
        # a softmax does not change with what is added to all its logits; the value changes by its
        # gradient times what rounding moves in both runs, and by the rounding of the sums
        moved = similarity_divergence(student + 0.25, teacher, labels, k, **options)
        off += rounding(student + 0.25, teacher, low, **options)[1] + 2**-24 / temperature
        bound = unit * value + (size * off * temperature).sum()
        assert (moved - value).abs() <= bound


def test_the_operator_is_registered_as_it_behaves(device):
    student, teacher, labels, k = make_inputs(SHAPES["odd"], device)
    selected = torch.tensor([[True], [False]], device=device)
    torch.library.opcheck(
        torch.ops.fastseg.similarity_divergence.default,
        (student.requires_grad_(), teacher, labels, k, selected, "map", "mask", 2.0),
    )


@pytest.mark.parametrize("axis", ["row", "map"])
def test_compiles_to_one_graph(axis, device):
    inputs = make_inputs(SHAPES["odd"], device)
    compiled = torch.compile(similarity_divergence, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(
        run(compiled, *inputs, axis=axis), run(similarity_divergence, *inputs, axis=axis),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(got, wanted)


def test_the_module_is_the_function(device):
    student, teacher, labels, k = make_inputs(SHAPES["odd"], device)
    options = {"axis": "map", "ignored": "one", "temperature": 0.5}
    selected = torch.tensor([[True], [False]], device=device)
    wanted = similarity_divergence(student, teacher, labels, k, selected=selected, **options)
    got = SimilarityDivergence(k, **options)(student, teacher, labels, selected)
    assert torch.equal(got, wanted)


def test_the_definition_serves_what_the_kernel_does_not(device):
    student, teacher, labels, k = make_inputs(SHAPES["odd"], device)
    check(student, teacher, labels, k, temperature=0.01)
    check(student, teacher, labels, 300)
    wide = make_inputs((1, 1, (1, 4100), (1, 4100)), device)
    check(*wide)
    with switch.force_reference():
        value = similarity_divergence(student.double(), teacher.double(), labels, k)
        assert value.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(2, 3, 4)}, r"\(2, 3, 4\)"),
        ({"student": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, "floats, got torch.int32"),
        ({"teacher": torch.zeros(2, 3, 4, 5)}, r"\(2, 3, 4, 5\)"),
        ({"teacher": torch.zeros(2, 3, 4, 4, device="meta")}, "one device.*meta"),
        ({"labels": torch.zeros(2, 8, 8, dtype=torch.uint8)}, r"\(2, 8, 8\)"),
        ({"labels": torch.zeros(3, 8, 8)}, "integers, got torch.float32"),
        ({"num_classes": 0}, "at least 1, got 0"),
        ({"axis": "column"}, "'column'"),
        ({"ignored": "drop"}, "'drop'"),
        ({"temperature": -1.0}, "positive, got -1"),
        ({"selected": torch.ones(2, 3)}, "bool, got .*float32"),
    ],
)
def test_wrong_inputs_are_named(change, message, device):
    arguments = {
        "student": torch.zeros(2, 3, 4, 4),
        "teacher": torch.zeros(2, 3, 4, 4),
        "labels": torch.zeros(3, 8, 8, dtype=torch.uint8),
        "num_classes": 2,
    } | change
    arguments = {
        name: x.to(device) if isinstance(x, torch.Tensor) and not x.is_meta else x
        for name, x in arguments.items()
    }
    with pytest.raises(ValueError, match=message):
        similarity_divergence(**arguments)
