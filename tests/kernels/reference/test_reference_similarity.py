"""Similarity maps and their distillation, against loops over classes and rows."""

import pytest
import torch
from torch.nn import functional

from fastseg.kernels.reference import similarity
from tests.support.optional_hypothesis import given, settings, st

# modalities, batch, channels, (h, w), (H, W), classes
SHAPES = {
    "level": (4, 2, 16, (8, 8), (32, 32), 25),
    "one-pixel": (1, 1, 1, (1, 1), (1, 1), 1),
    "odd": (3, 2, 5, (5, 7), (13, 17), 6),
    "many-classes": (6, 1, 3, (4, 6), (16, 24), 200),
    "upsampled": (2, 3, 4, (6, 6), (4, 4), 3),
}


def make_inputs(shape, dtype=torch.float64, seed=0):
    m, b, c, size, full, k = shape
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(m, b, c, *size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(-1, k + 1, (b, *full), generator=generator)
    labels[labels == k] = 255
    return features, labels, k


def make_levels(ms=2, mt=3, b=2, k=5):
    sides = []
    generator = torch.Generator().manual_seed(0)
    for m, widths in ((ms, (8, 16, 3)), (mt, (8, 4, 3))):
        levels = zip(widths, (8, 4, 2), strict=True)
        sides.append([torch.randn(m, b, c, s, s, generator=generator).double() for c, s in levels])
    labels = torch.randint(0, k + 1, (b, 16, 16), generator=generator)
    labels[labels == k] = 255
    return *sides, labels, k


def published_map(features, labels, num_classes, detach=False):
    """Similarity map ``[h, w]`` of ``[C, h, w]`` as published: a full-size centre map."""
    resized = functional.interpolate(labels[None, None].double(), size=features.shape[1:])
    resized = resized[0].expand(features.shape)
    centre = features.clone()
    for k in range(num_classes):
        mask = (resized == k).to(features.dtype)
        mean = (mask * features).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)
        centre = (1 - mask) * centre + mask * (mean.detach() if detach else mean)[:, None, None]
    return functional.cosine_similarity(features, centre, dim=0)


def published_distillation(student, teacher, labels, num_classes, present, detach=False):
    """The released code: rows of the maps at temperature 2, a loop around :func:`published_map`."""
    total = 0.0
    for b in range(len(labels)):
        for x, t in zip(student, teacher, strict=True):
            for m, row in enumerate(present):
                own = published_map(x[m, b], labels[b], num_classes, detach)[None]
                wanted = published_map(t[row, b], labels[b], num_classes)[None]
                p, q = (own / 2).log_softmax(-1), (wanted / 2).softmax(-1)
                total = total + functional.kl_div(p, q, reduction="batchmean") * 4
    return total / len(labels)


def masked_divergence(student, teacher, labels, num_classes, temperature, whole):
    """Divergence of maps over the seen pixels of each row, or of the map, by boolean indices."""
    total = 0.0
    resized = functional.interpolate(labels[:, None].double(), size=student.shape[2:])[:, 0]
    seen = (resized >= 0) & (resized < num_classes)
    for x, t in zip(student, teacher, strict=True):
        for b in range(len(labels)):
            groups = [(x[b], t[b], seen[b])] if whole else zip(x[b], t[b], seen[b], strict=True)
            for own, wanted, mask in groups:
                p = (own[mask] / temperature).softmax(0)
                q = (wanted[mask] / temperature).softmax(0)
                total = total + (q * (q.log() - p.log())).sum()
    return total * temperature**2 / len(labels)


def assert_close(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def with_gradients(value, inputs):
    return value.detach(), *torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_map_equals_the_published_loop_where_there_is_a_class(shape):
    features, labels, k = make_inputs(shape)
    features.requires_grad_()
    got = similarity.prototype_similarity(features, labels, k)
    maps = [published_map(x, labels[b], k) for level in features for b, x in enumerate(level)]
    inside = functional.interpolate(labels[:, None].double(), size=shape[3])[:, 0]
    inside = ((inside >= 0) & (inside < k)).expand(got.shape)
    wanted = torch.stack(maps).view(got.shape) * inside
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).double()
    assert got.dtype == torch.float64
    assert_close(
        (got, *torch.autograd.grad((got * weight).sum(), features)),
        (wanted, *torch.autograd.grad((wanted * weight).sum(), features)),
    )


@pytest.mark.parametrize("present", [None, [2, 0], [1, 1]], ids=str)
@pytest.mark.parametrize("detach", [False, True], ids=["through", "detached"])
def test_code_form_equals_the_published_loops(present, detach):
    student, teacher, labels, k = make_levels(mt=2 if present is None else 3)
    student = [x.requires_grad_() for x in student]
    got = similarity.ifv_distillation(
        student, teacher, labels, k, present=present, ignored="one", detach_prototypes=detach
    )
    wanted = published_distillation(student, teacher, labels, k, present or [0, 1], detach)
    assert_close(with_gradients(got, student), with_gradients(wanted, student))


@pytest.mark.parametrize("axis", ["row", "map"])
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_ignored_pixels_are_left_out(axis, temperature):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 2, 6, 4, generator=generator).double() * 2 - 1
    student, teacher = maps[0].requires_grad_(), maps[1]
    labels = torch.randint(0, 3, (2, 12, 8), generator=generator)
    labels[labels == 2] = 255
    labels[0, 4] = 255  # a row of a map without any class
    got = similarity.similarity_divergence(
        student, teacher, labels, 2, axis=axis, temperature=temperature
    )
    wanted = masked_divergence(student, teacher, labels, 2, temperature, axis == "map")
    assert_close(with_gradients(got, student), with_gradients(wanted, student))


def test_selected_modalities_alone_take_part():
    student, teacher, labels, k = make_levels(ms=3)
    student = [x.requires_grad_() for x in student]
    selected = torch.tensor([[True, False], [False, False], [True, True]])
    got = similarity.ifv_distillation(student, teacher, labels, k, selected=selected)
    wanted = sum(
        similarity.ifv_distillation(
            [x[[m]][:, [b]] for x in student], [x[[m]][:, [b]] for x in teacher], labels[[b]], k
        )
        for m, b in selected.nonzero().tolist()
    )
    grads = torch.autograd.grad(got, student)
    assert not any(grad[1].any() or grad[0, 1].any() for grad in grads)
    assert_close((got, *grads), with_gradients(wanted / 2, student))


def test_gradients_are_checked_numerically():
    features, labels, k = make_inputs((2, 2, 3, (3, 4), (6, 8), 3))
    prototypes = torch.randn(2, 2, k, 3, generator=torch.Generator().manual_seed(1)).double()
    features.requires_grad_()
    prototypes.requires_grad_()
    for inputs in ((features,), (features, prototypes)):
        assert torch.autograd.gradcheck(
            lambda x, p=None: similarity.prototype_similarity(x, labels, k, p), inputs
        )


@pytest.mark.parametrize("options", [{}, {"axis": "map"}, {"ignored": "one"}], ids=str)
def test_gradient_of_the_distillation_is_checked_numerically(options):
    student, teacher, labels, k = make_levels(mt=2, b=1)
    assert torch.autograd.gradcheck(
        lambda x: similarity.ifv_distillation([x], teacher[2:], labels, k, **options),
        (student[2].requires_grad_(),),
    )


@pytest.mark.parametrize("value", [255, -1, 5, 200])
@pytest.mark.parametrize("ignored", ["mask", "one"])
def test_all_ignored_gives_zeros_and_zero_gradient(value, ignored):
    student, teacher, labels, k = make_levels(mt=2)
    student = [x.requires_grad_() for x in student]
    labels = torch.full_like(labels, value)
    assert not similarity.prototype_similarity(student[0], labels, k).any()
    for axis in ("row", "map"):
        loss = similarity.ifv_distillation(student, teacher, labels, k, axis=axis, ignored=ignored)
        assert loss == 0
        assert not any(grad.any() for grad in torch.autograd.grad(loss, student))


def test_vectors_without_a_direction_have_no_similarity_and_no_gradient():
    features = torch.randn(1, 1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    features[..., 0, 0] = 0
    features[..., 1, 2] = -features[..., 1, 1]  # the mean of class 1 is zero
    features.requires_grad_()
    labels = torch.tensor([[[0, 0, 0], [0, 1, 1]]])
    got = similarity.prototype_similarity(features, labels, 3)
    (grad,) = torch.autograd.grad((got * torch.arange(6.0).view(2, 3)).sum(), features)
    assert got[0, 0, 0, 0] == 0
    assert not got[..., 1, 1:].any()
    assert not grad[..., 1, 1:].any()
    assert grad.isfinite().all()
    # of the zero pixel only the part through the mean is left, which its class shares
    got = similarity.prototype_similarity(features, labels, 3, torch.ones(1, 1, 3, 4))
    (grad,) = torch.autograd.grad(got.sum(), features)
    assert not grad[..., 0, 0].any()
    assert grad[..., 0, 1].any()


def test_low_precision_features_are_compared_in_float32():
    features, labels, k = make_inputs(SHAPES["level"], torch.bfloat16)
    wanted = similarity.prototype_similarity(features.float(), labels, k)
    features.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = similarity.prototype_similarity(features, labels, k)
        loss = similarity.similarity_divergence(got, 0.9 * wanted, labels, k)
    assert got.dtype == loss.dtype == torch.float32
    assert torch.equal(got, wanted)
    assert torch.autograd.grad(loss, features)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("axis", ["row", "map"])
def test_close_maps_keep_their_digits(axis):
    generator = torch.Generator().manual_seed(0)
    student = torch.rand(1, 1, 8, 64, generator=generator)
    teacher = student + 1e-3 * torch.randn(student.shape, generator=generator)
    labels = torch.zeros(1, 8, 64, dtype=torch.uint8)
    student.requires_grad_()
    results = [
        with_gradients(
            similarity.similarity_divergence(x, teacher.to(x.dtype), labels, 1, axis=axis), x
        )
        for x in (student, student.detach().double().requires_grad_())
    ]
    for got, wanted in zip(*results, strict=True):
        assert ((got - wanted).norm() < 1e-3 * wanted.norm()).item()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 6),
    b=st.integers(1, 3),
    k=st.integers(1, 9),
    scale=st.floats(0.01, 100),
)
def test_map_is_a_cosine_and_equivariant(seed, m, b, k, scale):
    features, labels, k = make_inputs((m, b, 4, (4, 4), (8, 8), k), seed=seed)
    got = similarity.prototype_similarity(features, labels, k)
    assert got.abs().max() <= 1
    generator = torch.Generator().manual_seed(seed)
    classes, modalities = (torch.randperm(n, generator=generator) for n in (k, m))
    inside = (labels >= 0) & (labels < k)
    renamed = torch.where(inside, classes[labels.clamp(0, k - 1)], labels)
    other = similarity.prototype_similarity(features[modalities] * scale, renamed, k)
    torch.testing.assert_close(other, got[modalities])
    # prototypes may have lengths of their own
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(m, b, k, 4, generator=generator).double()
    lengths = torch.rand(m, b, k, 1, generator=generator).double() + 0.1
    torch.testing.assert_close(
        similarity.prototype_similarity(features, labels, k, prototypes * lengths),
        similarity.prototype_similarity(features, labels, k, prototypes),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    axis=st.sampled_from(["row", "map"]),
    ignored=st.sampled_from(["mask", "one"]),
    temperature=st.floats(0.1, 10),
    step=st.sampled_from([0.0, 1e-6, 0.1, 1.0]),
)
def test_divergence_is_never_negative_and_zero_only_for_equal_maps(
    seed, axis, ignored, temperature, step
):
    generator = torch.Generator().manual_seed(seed)
    student = torch.rand(2, 2, 4, 6, generator=generator) * 2 - 1
    teacher = (student + step * torch.randn(student.shape, generator=generator)).clamp(-1, 1)
    labels = torch.randint(0, 3, (2, 8, 12), generator=generator)
    loss = similarity.similarity_divergence(
        student, teacher, labels, 2, axis=axis, ignored=ignored, temperature=temperature
    )
    assert loss.isfinite()
    assert loss == 0 if step == 0 else loss > 0


@pytest.mark.parametrize(
    ("features", "labels", "k", "prototypes", "message"),
    [
        ((2, 3, 4, 4), (3, 8, 8), 5, None, r"\[M, B, C, h, w\].*\(2, 3, 4, 4\)"),
        ((1, 3, 2, 4, 4), (2, 8, 8), 5, None, r"\(2, 8, 8\)"),
        ((1, 3, 2, 4, 4), (3, 8, 8), 0, None, "at least 1, got 0"),
        ((1, 3, 2, 0, 4), (3, 8, 8), 5, None, r"at least 1 x 1.*\(0, 4\)"),
        ((1, 3, 2, 4, 4), (3, 8, 8), 5, (1, 3, 2, 5), r"\(1, 3, 5, 2\), got \(1, 3, 2, 5\)"),
    ],
)
def test_wrong_features_are_named(features, labels, k, prototypes, message):
    with pytest.raises(ValueError, match=message):
        similarity.prototype_similarity(
            torch.zeros(features),
            torch.zeros(labels, dtype=torch.int64),
            k,
            None if prototypes is None else torch.zeros(prototypes),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(2, 3, 4)}, r"\(2, 3, 4\)"),
        ({"teacher": torch.zeros(2, 3, 4, 5)}, r"\(2, 3, 4, 5\)"),
        ({"labels": torch.zeros(2, 8, 8, dtype=torch.uint8)}, r"\(2, 8, 8\)"),
        ({"labels": torch.zeros(3, 8, 8)}, "integers, got torch.float32"),
        ({"num_classes": 0}, "at least 1, got 0"),
        ({"axis": "column"}, "'column'"),
        ({"ignored": "drop"}, "'drop'"),
        ({"temperature": 0.0}, "positive, got 0"),
        ({"selected": torch.ones(3, 2, dtype=torch.bool)}, r"\(2, 3\).*\(3, 2\)"),
        ({"selected": torch.ones(2, 3)}, "bool, got .*float32"),
    ],
)
def test_wrong_maps_and_options_are_named(change, message):
    arguments = {
        "student": torch.zeros(2, 3, 4, 4),
        "teacher": torch.zeros(2, 3, 4, 4),
        "labels": torch.zeros(3, 8, 8, dtype=torch.uint8),
        "num_classes": 2,
    }
    with pytest.raises(ValueError, match=message):
        similarity.similarity_divergence(**(arguments | change))


@pytest.mark.parametrize(
    ("levels", "present", "message"),
    [
        (2, [0, 1], "got 3 and 2"),
        (0, [0, 1], "got 3 and 0"),
        (3, None, r"\[\(2, 3\)\] and present=None"),
        (3, [0], r"present=\[0\]"),
        (3, [0, 3], r"present=\[0, 3\]"),
    ],
)
def test_wrong_levels_and_rows_are_named(levels, present, message):
    student, teacher, labels, k = make_levels()
    with pytest.raises(ValueError, match=message):
        similarity.ifv_distillation(student, teacher[:levels], labels, k, present=present)


def test_the_level_that_does_not_fit_is_named():
    student, teacher, labels, k = make_levels(mt=2)
    with pytest.raises(ValueError, match=r"level 1: .*\(2, 2, 4, 4, 2\)"):
        similarity.ifv_distillation(
            student, [teacher[0], teacher[1][..., :2], teacher[2]], labels, k
        )
    with pytest.raises(ValueError, match=r"\[\(1, 2\), \(2, 2\)\]"):
        similarity.ifv_distillation([student[0][:1], *student[1:]], teacher, labels, k)
