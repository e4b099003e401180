"""Hybrid prototype distillation in Triton against its definition and the published loops."""

import pytest
import torch
from torch.nn import functional

from fastseg.kernels import reference
from fastseg.kernels.testing import assert_as_accurate

pytest.importorskip("triton")

from fastseg.kernels.modules import HybridPrototypeDistillation
from fastseg.kernels.prototypes.hybrid_distillation import (
    hybrid_prototype_distillation,
)

pytestmark = pytest.mark.usefixtures("kernels")

LEVELS = [(8, 8), (16, 4), (5, 2), (32, 1)]  # channels, side


def channels_last(x):
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def make_levels(device, dtype=torch.float32, ms=2, mt=3, b=2, k=5, planar=False):
    """Student and teacher features, labels without class 0, pairing."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for m in (ms, mt):
        levels = [torch.randn(m, b, c, s, s, generator=generator) for c, s in LEVELS]
        levels = [x if planar else channels_last(x) for x in levels]
        sides.append([x.to(device, dtype) for x in levels])
    labels = torch.randint(0, k, (b, 32, 32), generator=generator, dtype=torch.uint8)
    labels[labels == 0] = 255
    pairing = torch.randint(0, ms, (b, mt), generator=generator)
    return *sides, labels.to(device), k, pairing.to(device)


def run(loss, student, *others, **options):
    student = [x.detach().requires_grad_() for x in student]
    value = loss(student, *others, **options)
    return value.detach(), *torch.autograd.grad(value, student)


def check(student, teacher, labels, k, pairing, slack=1e-5, **options):
    got, eager, truth = (
        run(loss, *([x.to(dtype or x.dtype) for x in side] for side in (student, teacher)),
            labels, k, pairing, **options)
        for loss, dtype in (
            (hybrid_prototype_distillation, None),
            (reference.hybrid_prototype_distillation, None),
            (reference.hybrid_prototype_distillation, torch.float64),
        )
    )  # fmt: skip
    assert got[0].dtype == torch.float32
    for result, plain, exact in zip(got, eager, truth, strict=True):
        assert_as_accurate(result, plain, exact, slack * float(exact.abs().max()))
    for x, grad in zip(student, got[1:], strict=True):
        assert grad.dtype == x.dtype
        assert grad.stride() == x.stride() or x.shape[4] == 1


OPTIONS = {
    "paper": {},
    "channel-warm": {"axis": "channel", "temperature": 2.0},
    "zero-row": {"absent": "zero_row"},
    "code": {"form": "code", "present": [2, 0]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_matches_the_definition(options, device):
    check(*make_levels(device), **options)


@pytest.mark.parametrize("planar", [False, True], ids=["channels-last", "planar"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_in_both_memory_orders(dtype, planar, device):
    check(*make_levels(device, dtype, planar=planar))


def test_levels_and_networks_of_several_dtypes(device):
    student, teacher, *others = make_levels(device)
    student[1], student[2] = student[1].bfloat16(), student[2].contiguous()
    check(student, [x.half() for x in teacher], *others)


def test_labels_at_no_whole_multiple_and_one_modality(device):
    student, teacher, labels, k, pairing = make_levels(device, ms=1, mt=1)
    check(student, teacher, labels[:, :27, 2:].long(), k, pairing)


def published_distillation(student, teacher, labels, num_classes, index):
    """What the released code does: a triple loop, prototypes in a further loop over the classes."""
    batch = labels.shape[0]
    total = 0.0
    for b in range(batch):
        for x, t in zip(student, teacher, strict=True):
            for i, name in enumerate(index):
                small = functional.interpolate(labels[b][None, None].double(), size=x.shape[3:])
                prototypes = []
                for feature in (x[i, b], t[name, b]):
                    rows = []
                    for c in range(num_classes):
                        mask = (small[0, 0] == c).to(feature.dtype)
                        mean = (feature * mask).sum((1, 2)) / mask.sum().clamp(min=1)
                        rows.append(mean / mask.sum().clamp(min=1))
                    prototypes.append(torch.stack(rows))
                p, q = prototypes
                loss = (q.softmax(0) * (q.log_softmax(0) - p.log_softmax(0))).mean()
                total = total + loss.clamp(min=0)
    return total / batch


@pytest.mark.parametrize("index", [[0, 1], [2, 2]], ids=["two", "one-teacher-twice"])
def test_code_form_equals_the_published_loops(index, device):
    student, teacher, labels, k, _ = make_levels(device)
    got = run(hybrid_prototype_distillation, student, teacher, labels, k, form="code",
              present=index)  # fmt: skip
    wanted = run(published_distillation, [x.double() for x in student],
                 [x.double() for x in teacher], labels, k, index)  # fmt: skip
    for result, exact in zip(got, wanted, strict=True):
        assert ((result - exact).norm() <= 1e-5 * exact.norm()).item()


@pytest.mark.fault("F9")
def test_all_ignored_gives_zero_and_zero_gradient(device):
    student, teacher, labels, k, pairing = make_levels(device)
    for form in ("paper", "code"):
        value, *grads = run(
            hybrid_prototype_distillation, student, teacher, labels | 255, k, pairing,
            form=form, present=[0, 1],
        )  # fmt: skip
        assert value == 0
        assert not any(grad.any() for grad in grads)


def test_four_launches_and_no_teacher_gradient(device, launched):
    student, teacher, labels, k, pairing = make_levels(device)
    teacher = [x.requires_grad_() for x in teacher]
    run(hybrid_prototype_distillation, student, teacher, labels, k, pairing)
    assert launched == [
        "_prototype_pool_fwd_kernel",
        "_prototype_pool_reduce_kernel",
        "_prototype_divergence_fwd_kernel",
        "_prototype_pool_bwd_kernel",
    ]


def test_the_operator_is_registered_as_it_behaves(device):
    student, teacher, labels, k, pairing = make_levels(device, b=1)
    student = [x.requires_grad_() for x in student]
    torch.library.opcheck(
        torch.ops.fastseg.hybrid_prototype_distillation.default,
        (student[:2], teacher[:2], labels, k, pairing[:1], [0, 1, 2], "class", "mask", 1.0, False),
    )


def test_compiles_to_one_graph(device):
    inputs = make_levels(device)
    compiled = torch.compile(hybrid_prototype_distillation, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(
        run(compiled, *inputs), run(hybrid_prototype_distillation, *inputs), strict=True
    ):
        assert torch.equal(got, wanted)


def test_the_module_is_the_function(device):
    student, teacher, labels, k, pairing = make_levels(device)
    module = HybridPrototypeDistillation(k, axis="channel", temperature=2.0)
    wanted = hybrid_prototype_distillation(
        student, teacher, labels, k, pairing, axis="channel", temperature=2.0
    )
    assert torch.equal(module(student, teacher, labels, pairing), wanted)


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        (3, {}, "got 4 and 3"),
        (0, {}, "got 4 and 0"),
        (4, {"form": "both"}, "'both'"),
        (4, {"pairing": None}, "needs a pairing"),
        (4, {"axis": "height"}, "'height'"),
        (4, {"form": "code", "present": [0]}, r"present=\[0\]"),
        (4, {"form": "code", "present": [0, 3]}, "one teacher modality of 3"),
        (4, {"form": "code"}, "present=None"),
        (4, {"pairing": torch.zeros(2, 3, dtype=torch.int64, device="meta")}, "one device"),
    ],
)
def test_wrong_levels_and_forms_are_named(levels, options, message, device):
    student, teacher, labels, k, pairing = make_levels(device)
    options = {"pairing": pairing} | options
    with pytest.raises(ValueError, match=message):
        hybrid_prototype_distillation(student, teacher[:levels], labels, k, **options)


def test_the_level_whose_shape_is_wrong_is_named(device):
    student, teacher, labels, k, pairing = make_levels(device)
    teacher[2] = teacher[2][:, :, :4]
    with pytest.raises(ValueError, match=r"level 2: .*\(3, 2, 4, 2, 2\)"):
        hybrid_prototype_distillation(student, teacher, labels, k, pairing)
