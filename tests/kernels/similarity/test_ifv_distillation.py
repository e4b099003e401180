"""Distillation of the similarity maps in Triton against its definition and the published loops."""

import pytest
import torch
from torch.nn import functional

from fastseg.kernels.reference import similarity as reference
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")
from fastseg.kernels.modules import IFVDistillation
from fastseg.kernels.similarity.ifv_distillation import ifv_distillation

pytestmark = pytest.mark.usefixtures("kernels")

LEVELS = [(8, 8), (40, 4), (5, 1)]  # channels, side


def channels_last(x):
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def make_levels(device, dtype=torch.float32, ms=2, mt=2, b=2, k=2, planar=False):
    """Student and teacher features, labels of some pixels."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for m in (ms, mt):
        levels = [torch.randn(m, b, c, s, s, generator=generator) for c, s in LEVELS]
        levels = [x if planar else channels_last(x) for x in levels]
        sides.append([x.to(device, dtype) for x in levels])
    labels = torch.randint(0, k + 1, (b, 32, 32), generator=generator, dtype=torch.uint8)
    labels[labels == k] = 255
    return *sides, labels.to(device), k


def run(loss, student, *others, **options):
    student = [x.detach().requires_grad_() for x in student]
    value = loss(student, *others, **options)
    return value.detach(), *torch.autograd.grad(value, student)


def check(student, teacher, labels, k, slack=1e-5, **options):
    got, eager, truth = (
        run(loss, *([x.to(dtype or x.dtype) for x in side] for side in (student, teacher)),
            labels, k, **options)
        for loss, dtype in (
            (ifv_distillation, None),
            (reference.ifv_distillation, None),
            (reference.ifv_distillation, torch.float64),
        )
    )  # fmt: skip
    assert got[0].dtype == torch.float32
    # a level of one pixel has no gradient but that of rounding
    scale = max(float(exact.abs().max()) for exact in truth[1:])
    for result, plain, exact in zip(got, eager, truth, strict=True):
        assert_as_accurate(result, plain, exact, slack * max(scale, float(exact.abs().max())))
    for x, grad in zip(student, got[1:], strict=True):
        assert grad.dtype == x.dtype
        assert grad.stride() == x.stride() or x.shape[4] == 1


OPTIONS = {
    "paper": {},
    "map": {"axis": "map", "temperature": 1.0},
    "code": {"ignored": "one"},
    "detached": {"detach_prototypes": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_matches_the_definition(options, device):
    check(*make_levels(device), **options)


@pytest.mark.parametrize("planar", [False, True], ids=["channels-last", "planar"])
def test_half_precision_in_both_memory_orders(planar, device):
    # a gradient in bfloat16 may round the other way
    check(*make_levels(device, torch.bfloat16, b=1, planar=planar), slack=8e-3)


def test_levels_and_networks_of_several_dtypes_and_widths(device):
    student, teacher, *others = make_levels(device, b=1)
    student[1], student[2] = student[1].half(), student[2].contiguous()
    teacher[0] = torch.cat([teacher[0], teacher[0].flip(1)], 2)
    check(student, [x.half() for x in teacher], *others, slack=1e-3)


def test_labels_at_no_whole_multiple_and_one_modality(device):
    student, teacher, labels, k = make_levels(device, ms=1, mt=1)
    check(student, teacher, labels[:, :27, 2:].long(), k)


@pytest.mark.parametrize("present", [[2, 0], [3, 3], [0, 1, 3]], ids=str)
def test_present_modalities_have_their_own_teachers(present, device):
    student, teacher, labels, k = make_levels(device, ms=len(present), mt=4, b=1)
    # what lies before, after and evenly between is not read
    for level in teacher:
        for i in range(4):
            if i not in present and present != [0, 1, 3]:
                level[i] = torch.nan
    check(student[1:], teacher[1:], labels, k, present=present)


def test_selected_modalities_alone_get_a_gradient(device):
    student, teacher, labels, k = make_levels(device)
    selected = torch.tensor([[True, False], [False, True]], device=device)
    check(student[1:], teacher[1:], labels, k, selected=selected)
    _, grad = run(ifv_distillation, student[1:2], teacher[1:2], labels, k, selected=selected)
    assert not grad[~selected].any()
    assert grad[0, 0].any()
    assert grad[1, 1].any()


def published_map(features, labels, num_classes):
    """Similarity map ``[h, w]`` of ``[C, h, w]`` as published: a full-size centre map."""
    resized = functional.interpolate(labels[None, None].double(), size=features.shape[1:])
    resized = resized[0].expand(features.shape)
    centre = features.clone()
    for k in range(num_classes):
        mask = (resized == k).to(features.dtype)
        mean = (mask * features).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)
        centre = (1 - mask) * centre + mask * mean[:, None, None]
    return functional.cosine_similarity(features, centre, dim=0)


def published_distillation(student, teacher, labels, num_classes):
    """What the released code does: rows of the maps at temperature 2, in a triple loop."""
    total = 0.0
    for b in range(len(labels)):
        for x, t in zip(student, teacher, strict=True):
            for m in range(len(x)):
                own = published_map(x[m, b], labels[b], num_classes)[None]
                wanted = published_map(t[m, b], labels[b], num_classes)[None]
                p, q = (own / 2).log_softmax(-1), (wanted / 2).softmax(-1)
                total = total + functional.kl_div(p, q, reduction="batchmean") * 4
    return total / len(labels)


def test_code_form_equals_the_published_loops(device):
    student, teacher, labels, k = make_levels(device)
    student, teacher = student[:2], teacher[:2]
    got = run(ifv_distillation, student, teacher, labels, k, ignored="one")
    wanted = run(
        published_distillation,
        [x.double() for x in student], [x.double() for x in teacher], labels, k,
    )  # fmt: skip
    for result, exact in zip(got, wanted, strict=True):
        assert ((result - exact).norm() <= 1e-5 * exact.norm()).item()


def test_all_ignored_gives_zero_and_zero_gradient(device):
    student, teacher, labels, k = make_levels(device)
    for options in ({"axis": "map"}, {"ignored": "one"}):
        value, *grads = run(ifv_distillation, student[1:], teacher[1:], labels | 255, k, **options)
        assert value == 0
        assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("detach", [False, True], ids=["through", "detached"])
def test_all_levels_share_the_launches_and_the_teacher_has_no_gradient(detach, device, launched):
    student, teacher, labels, k = make_levels(device, ms=1, mt=1, b=1)
    teacher = [x.requires_grad_() for x in teacher]
    run(ifv_distillation, student, teacher, labels, k, detach_prototypes=detach)
    assert launched == [
        "_prototype_pool_fwd_kernel",
        "_prototype_pool_reduce_kernel",
        "_prototype_similarity_fwd_kernel",
        "_similarity_divergence_fwd_kernel",
        *([] if detach else ["_prototype_similarity_pull_kernel"]),
        "_prototype_similarity_project_kernel",
        "_prototype_similarity_bwd_kernel",
    ]


def test_results_repeat_bit_by_bit(device):
    student, teacher, labels, k = make_levels(device, b=1)
    inputs = student[:2], teacher[:2], labels, k
    for first, second in zip(
        run(ifv_distillation, *inputs), run(ifv_distillation, *inputs), strict=True
    ):
        assert torch.equal(first, second)


def test_the_operator_is_registered_as_it_behaves(device):
    student, teacher, labels, k = make_levels(device, ms=1, mt=1, b=1)
    student = [x.requires_grad_() for x in student[1:]]
    selected = torch.ones(1, 1, dtype=torch.bool, device=device)
    torch.library.opcheck(
        torch.ops.fastseg.ifv_distillation.default,
        (student, teacher[1:], labels, k, [0], selected, True, "row", "mask", 2.0),
    )


def test_compiles_to_one_graph(device):
    student, teacher, labels, k = make_levels(device, b=1)
    inputs = student[1:], teacher[1:], labels, k
    compiled = torch.compile(ifv_distillation, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(run(compiled, *inputs), run(ifv_distillation, *inputs), strict=True):
        assert torch.equal(got, wanted)


def test_the_module_is_the_function(device):
    student, teacher, labels, k = make_levels(device, ms=1, b=1)
    student, teacher = student[1:], teacher[1:]
    selected = torch.ones(1, 1, dtype=torch.bool, device=device)
    options = {"axis": "map", "ignored": "one", "temperature": 0.5}
    wanted = ifv_distillation(
        student, teacher, labels, k, present=[1], selected=selected, **options
    )
    module = IFVDistillation(k, detach_prototypes=True, **options)
    assert torch.equal(module(student, teacher, labels, [1], selected), wanted)


def test_the_definition_serves_what_the_kernels_do_not(device):
    student, teacher, labels, k = make_levels(device, ms=0, mt=2)
    assert ifv_distillation(student, teacher, labels, k, present=[]) == 0
    student, teacher, labels, k = make_levels(device)
    cold = run(ifv_distillation, student, teacher, labels, k, temperature=0.01)
    wanted = run(reference.ifv_distillation, student, teacher, labels, k, temperature=0.01)
    for got, exact in zip(cold, wanted, strict=True):
        assert torch.equal(got, exact)


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        (2, {}, "got 3 and 2"),
        (0, {}, "got 3 and 0"),
        (3, {"axis": "column"}, "'column'"),
        (3, {"ignored": "drop"}, "'drop'"),
        (3, {"temperature": 0.0}, "positive, got 0"),
        (3, {"present": [0]}, r"present=\[0\]"),
        (3, {"present": [0, 2]}, r"present=\[0, 2\]"),
        (3, {"selected": torch.ones(2, 3, dtype=torch.bool)}, r"\(2, 2\).*got \(2, 3\)"),
        (3, {"selected": torch.ones(2, 2, dtype=torch.bool, device="meta")}, "one device"),
    ],
)
def test_wrong_levels_and_options_are_named(levels, options, message, device):
    student, teacher, labels, k = make_levels(device)
    options = {
        name: x.to(device) if isinstance(x, torch.Tensor) and not x.is_meta else x
        for name, x in options.items()
    }
    with pytest.raises(ValueError, match=message):
        ifv_distillation(student, teacher[:levels], labels, k, **options)


def test_what_else_does_not_fit_is_named(device):
    student, teacher, labels, k = make_levels(device)
    with pytest.raises(ValueError, match=r"level 1: .*\(2, 2, 40, 1, 4\)"):
        ifv_distillation(student, [teacher[0], teacher[1][:, :, :, :1], teacher[2]], labels, k)
    with pytest.raises(ValueError, match=r"\(1, 32, 32\)"):
        ifv_distillation(student, teacher, labels[:1], k)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ifv_distillation(student, teacher, labels, 0)
    with pytest.raises(ValueError, match=r"floats, got torch\.int64"):
        ifv_distillation([x.long() for x in student], teacher, labels, k)
