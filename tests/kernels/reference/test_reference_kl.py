"""Softmax divergences of logits and prototypes, against loops and the published algorithm."""

import pytest
import torch
from torch.nn import functional

from fastseg.kernels import reference
from tests.support.optional_hypothesis import given, settings, st

LEVELS = [(4, 8), (6, 4), (8, 2), (10, 1)]  # channels, side


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_prototypes(ms=3, mt=4, b=2, k=6, c=5, seed=0):
    """Student, teacher, counts with absent classes (zero rows), pairing."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 3, (b, k), generator=generator)
    present = (counts > 0)[..., None]
    student = normal(ms, b, k, c, seed=seed + 1) * present
    teacher = normal(mt, b, k, c, seed=seed + 2) * present
    pairing = torch.randint(0, ms, (b, mt), generator=generator)
    return student.requires_grad_(), teacher, counts, pairing


def make_levels(m=3, b=2, k=5, seed=0, ms=None):
    student = [
        normal(ms or m, b, c, s, s, seed=seed + i).requires_grad_()
        for i, (c, s) in enumerate(LEVELS)
    ]
    teacher = [normal(m, b, c, s, s, seed=seed + 9 + i) for i, (c, s) in enumerate(LEVELS)]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, (b, 32, 32), generator=generator)
    labels[labels == 0] = 255  # class 0 is absent everywhere
    return student, teacher, labels, k


def divergence_by_loop(student, teacher, counts, pairing, axis, absent, t):
    """One softmax at a time, over the present classes only."""
    mt, b, k, c = teacher.shape
    total = student.sum() * 0
    for n in range(b):
        keep = [i for i in range(k) if counts[n, i] > 0 or absent == "zero_row"]
        for m in range(mt):
            p, q = student[pairing[n, m], n][keep] / t, teacher[m, n][keep] / t
            lines = zip(p.T, q.T, strict=True) if axis == "class" else zip(p, q, strict=True)
            for x, y in lines:
                if len(x):
                    q_line = y.softmax(0)
                    total = total + (q_line * (y.log_softmax(0) - x.log_softmax(0))).sum()
    return total * t**2 / (b * k * c)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("absent", ["mask", "zero_row"])
@pytest.mark.parametrize("axis", ["class", "channel"])
def test_prototype_divergence_equals_loop(axis, absent, temperature):
    student, teacher, counts, pairing = make_prototypes()
    got = reference.prototype_divergence(
        student, teacher, counts, pairing, axis=axis, absent=absent, temperature=temperature
    )
    wanted = divergence_by_loop(student, teacher, counts, pairing, axis, absent, temperature)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(got, student)
    (wanted_grad,) = torch.autograd.grad(wanted, student)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("axis", ["class", "channel"])
def test_gradient_is_checked_numerically(axis):
    student, teacher, counts, pairing = make_prototypes()
    assert torch.autograd.gradcheck(
        lambda x: reference.prototype_divergence(x, teacher, counts, pairing, axis=axis), (student,)
    )


@pytest.mark.parametrize(("m", "k"), [(1, 1), (1, 200), (6, 1), (6, 7)])
def test_sizes_at_the_edge(m, k):
    student, teacher, counts, _ = make_prototypes(m, m, 1, k, 3)
    pairing = torch.arange(m)[None]
    got = reference.prototype_divergence(student, teacher, counts, pairing)
    wanted = divergence_by_loop(student, teacher, counts, pairing, "class", "mask", 1.0)
    torch.testing.assert_close(got, wanted)
    assert (got == 0) == (k == 1)


@pytest.mark.parametrize("axis", ["class", "channel"])
@pytest.mark.parametrize("present", [[], [2]], ids=["no-class", "one-class"])
def test_samples_without_a_choice_of_class(axis, present):
    counts = torch.zeros(1, 4, dtype=torch.int64)
    counts[:, present] = 7
    shape = (2, 1, 4, 3)
    student = (normal(*shape) * (counts > 0)[..., None]).requires_grad_()
    teacher = normal(*shape, seed=1) * (counts > 0)[..., None]
    loss = reference.prototype_divergence(
        student, teacher, counts, torch.tensor([[0, 1]]), axis=axis
    )
    loss.backward()
    # one class over the class axis is a distribution over one thing: always one
    silent = axis == "class" or not present
    assert (loss.item() == 0) == silent
    assert (not student.grad.any()) == silent


def test_teacher_gets_no_gradient_and_unpaired_student_rows_none():
    student, teacher, counts, pairing = make_prototypes(ms=3)
    teacher.requires_grad_()
    reference.prototype_divergence(student, teacher, counts, pairing.clamp(max=1)).backward()
    assert teacher.grad is None
    assert not student.grad[2].any()
    assert student.grad[:2].any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-4, 1e-2, 1.0, 30.0]),
    axis=st.sampled_from(["class", "channel"]),
    absent=st.sampled_from(["mask", "zero_row"]),
)
def test_divergence_is_positive_and_equivariant(seed, scale, axis, absent):
    student, teacher, counts, pairing = make_prototypes(seed=seed)
    student, teacher = student.detach().float() * scale, teacher.float() * scale
    options = {"axis": axis, "absent": absent}
    value = reference.prototype_divergence(student, teacher, counts, pairing, **options)
    assert value >= 0
    generator = torch.Generator().manual_seed(seed)
    classes, rows = (torch.randperm(n, generator=generator) for n in (6, 3))
    renamed = reference.prototype_divergence(
        student[rows][:, :, classes],
        teacher[:, :, classes],
        counts[:, classes],
        rows.argsort()[pairing],  # where each row went
        **options,
    )
    torch.testing.assert_close(renamed, value, rtol=1e-4, atol=1e-10)
    same = reference.prototype_divergence(teacher, teacher, counts, pairing * 0, **options)
    itself = reference.prototype_divergence(teacher[:1], teacher[:1], counts, pairing[:, :1] * 0)
    assert same >= 0
    assert itself < 1e-14


def test_nearly_equal_logits_keep_their_digits_in_float32():
    teacher = normal(16, 25) * 1e-3
    student = teacher + normal(16, 25, seed=1) * 1e-4
    truth = reference.softmax_divergence(student, teacher, 1)
    wanted = functional.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), reduction="sum", log_target=True
    )
    torch.testing.assert_close(truth, wanted, rtol=1e-6, atol=0)
    x, y = student.float(), teacher.float()
    error = abs(reference.softmax_divergence(x, y, 1) - truth) / truth
    plain = functional.kl_div(x.log_softmax(1), y.softmax(1), reduction="sum")
    assert error < 5e-3
    assert abs(plain - truth) / truth > 20 * error  # what the stable form is for


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_that_the_teacher_rules_out_stays_finite(dtype):
    teacher = torch.tensor([[0.0, -200.0, 3.0], [0.0, -2000.0, 0.0]], dtype=dtype)
    student = torch.tensor([[1.0, 2.0, 0.0], [-5.0, 400.0, 1.0]], dtype=dtype, requires_grad=True)
    value = reference.softmax_divergence(student, teacher, 1)
    wanted = functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="sum")
    torch.testing.assert_close(value, wanted)
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, student.softmax(1) - teacher.softmax(1))


def test_softmax_divergence_without_a_mask_is_kl_div():
    x, y = normal(3, 4, 5).requires_grad_(), normal(3, 4, 5, seed=1)
    for dim in range(3):
        got = reference.softmax_divergence(x, y, dim, temperature=2.0)
        wanted = functional.kl_div(
            (x / 2).log_softmax(dim), (y / 2).log_softmax(dim), reduction="sum", log_target=True
        )
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (got, wanted)))


# hybrid distillation


def test_hybrid_distillation_pools_every_level_and_pairs_across_modalities():
    student, teacher, labels, k = make_levels(m=4, ms=2)
    pairing = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])
    got = reference.hybrid_prototype_distillation(student, teacher, labels, k, pairing)
    wanted = got.detach() * 0
    for x, t in zip(student, teacher, strict=True):
        p, counts = reference.masked_prototype_pool(x, labels, k)
        q, _ = reference.masked_prototype_pool(t, labels, k)
        wanted = wanted + divergence_by_loop(p, q, counts, pairing, "class", "mask", 1.0)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    for x, grad, wanted_grad in zip(
        student,
        torch.autograd.grad(got, student),
        torch.autograd.grad(wanted, student),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-9, atol=1e-14)
        ignored = reference.level_labels(labels, x.shape[3:]) == 255
        assert not (grad * ignored[:, None]).any()


def published_hybrid_distillation(student, teacher, labels, num_classes, index):
    """What the released code does: a triple loop, prototypes in a further loop over the classes."""
    batch = labels.shape[0]
    total = 0.0
    for b in range(batch):
        for x, t in zip(student, teacher, strict=True):
            for k, name in enumerate(index):
                size = x.shape[3:]
                small = functional.interpolate(labels[b][None, None].double(), size=size)[0, 0]
                prototypes = []
                for feature in (x[k, b], t[name, b]):
                    rows = []
                    for c in range(num_classes):
                        mask = (small == c).to(feature.dtype)
                        count = mask.sum()
                        if count > 0:
                            mean = (feature * mask).sum((1, 2)) / count
                            rows.append(mean / count)
                        else:
                            rows.append(torch.zeros_like(feature[:, 0, 0]))
                    prototypes.append(torch.stack(rows))
                p, q = prototypes
                loss = (q.softmax(0) * (q.log_softmax(0) - p.log_softmax(0))).mean()
                total = total + loss.clamp(min=0)
    return total / batch


@pytest.mark.parametrize("index", [[0, 1, 2], [2], [2, 0]], ids=["full", "one", "two"])
def test_code_form_equals_the_published_loops(index):
    student, teacher, labels, k = make_levels(m=3, ms=len(index))
    got = reference.hybrid_prototype_distillation(
        student, teacher, labels, k, form="code", present=index
    )
    wanted = published_hybrid_distillation(student, teacher, labels, k, index)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)
    grads = torch.autograd.grad(got, student)
    wanted_grads = torch.autograd.grad(wanted, student)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-8, atol=1e-16)


def test_code_form_pairs_by_name_and_takes_no_pairing():
    student, teacher, labels, k = make_levels()
    loss = reference.hybrid_prototype_distillation
    plain = loss(student, teacher, labels, k, form="code")
    turned = torch.tensor([[2, 0, 1]] * 2)
    assert torch.equal(plain, loss(student, teacher, labels, k, turned, form="code"))
    assert torch.equal(plain, loss(student, teacher, labels, k, form="code", present=[0, 1, 2]))
    other = loss(student, teacher, labels, k, form="code", present=[1, 2, 0])
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_all_ignored_gives_zero_and_zero_gradient(form):
    student, teacher, labels, k = make_levels()
    pairing = torch.tensor([[0, 1, 2]] * 2)
    loss = reference.hybrid_prototype_distillation(
        student, teacher, torch.full_like(labels, 255), k, pairing, form=form
    )
    loss.backward()
    assert loss.item() == 0
    assert not any(x.grad.any() for x in student)


def test_bfloat16_features_under_autocast_are_as_accurate_as_their_values():
    student, teacher, labels, k = make_levels()
    pairing = torch.tensor([[1, 0, 2], [2, 1, 0]])
    low = [[x.detach().bfloat16() for x in side] for side in (student, teacher)]
    wanted = reference.hybrid_prototype_distillation(
        [x.double() for x in low[0]], [x.double() for x in low[1]], labels, k, pairing
    )
    with torch.autocast("cpu", torch.bfloat16):
        got = reference.hybrid_prototype_distillation(*low, labels, k, pairing)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_device_without_autocast_serves():
    features = [torch.empty(2, 3, 4, 8, 8, device="meta")]
    labels = torch.empty(3, 32, 32, dtype=torch.int64, device="meta")
    pairing = torch.empty(3, 2, dtype=torch.int64, device="meta")
    loss = reference.hybrid_prototype_distillation(features, features, labels, 5, pairing)
    assert loss.shape == ()


# logits


def test_logit_distillation_is_kl_div_over_all_elements():
    student, teacher = normal(2, 5, 3, 4).requires_grad_(), normal(2, 5, 3, 4, seed=1)
    for t in (1.0, 3.0):
        got = reference.logit_distillation(student, teacher, t)
        wanted = functional.kl_div(
            (student / t).log_softmax(1), (teacher / t).softmax(1), reduction="sum"
        ) * (t**2 / student.numel())
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(*(torch.autograd.grad(v, student)[0] for v in (got, wanted)))


def test_logit_distillation_under_autocast_and_without_gradient():
    student, teacher = normal(2, 5, 3, 4).bfloat16(), normal(2, 5, 3, 4, seed=1).bfloat16()
    strided = student.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    wanted = reference.logit_distillation(student.double(), teacher.double())
    with torch.autocast("cpu", torch.bfloat16):
        got = reference.logit_distillation(strided.requires_grad_(), teacher)
    got.backward()
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert strided.grad.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(reference.logit_distillation(strided, teacher), got.detach())
    assert reference.logit_distillation(teacher, teacher) == 0


# errors


def wrong_prototypes(student=(2, 3, 5, 4), teacher=(4, 3, 5, 4), counts=(3, 5), pairing=(3, 4)):
    return (
        torch.zeros(student),
        torch.zeros(teacher),
        torch.ones(counts),
        torch.zeros(pairing, dtype=torch.int64),
    )


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
    ],
)
def test_wrong_prototypes_are_named(change, options, message):
    with pytest.raises(ValueError, match=message):
        reference.prototype_divergence(*wrong_prototypes(**change), **options)


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        (3, {}, "got 4 and 3"),
        (4, {"form": "both"}, "'both'"),
        (4, {"pairing": None}, "needs a pairing"),
        (4, {"form": "code", "present": [0, 1]}, r"present=\[0, 1\]"),
        (4, {"form": "code", "present": [0, 1, 3]}, "one teacher modality of 3"),
    ],
)
def test_wrong_levels_and_forms_are_named(levels, options, message):
    student, teacher, labels, k = make_levels()
    options = {"pairing": torch.tensor([[0, 1, 2]] * 2)} | options
    with pytest.raises(ValueError, match=message):
        reference.hybrid_prototype_distillation(student, teacher[:levels], labels, k, **options)


def test_the_level_whose_shape_is_wrong_is_named():
    student, teacher, labels, k = make_levels()
    teacher[2] = teacher[2][:, :, :5]
    with pytest.raises(ValueError, match=r"level 2: .*\(3, 2, 5, 2, 2\)"):
        reference.hybrid_prototype_distillation(student, teacher, labels, k, form="code")


def test_logits_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5, 3, 4\) and \(2, 5, 3, 5\)"):
        reference.logit_distillation(normal(2, 5, 3, 4), normal(2, 5, 3, 5))
