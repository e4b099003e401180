"""The fused segmentation losses against their definition in float64."""

import math

import pytest
import torch
from torch.nn import functional

from fastseg.kernels import reference
from fastseg.kernels.modules import SegmentationLoss
from fastseg.kernels.reference import segmentation
from fastseg.kernels.segmentation.loss import (
    _segmentation_loss,
    segmentation_loss,
)
from fastseg.kernels.testing import assert_as_accurate

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHAPES = {  # B K h w factor
    "odd": (2, 5, 3, 5, 4),
    "twice": (1, 25, 3, 2, 2),
    "eight": (1, 3, 2, 1, 8),
    "same": (2, 4, 3, 7, 1),
    "many-classes": (1, 200, 1, 2, 2),
    "one-class": (1, 1, 2, 2, 4),
    "one-logit": (3, 6, 1, 1, 4),
    "one-pixel": (1, 3, 1, 1, 1),
}


def make_inputs(shape, device, dtype=torch.float32, confidence=0.0, seed=0):
    """Student, teacher, labels with ignored and absent classes; the student may be right."""
    b, k, h, w, factor = shape
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((b, k, h, w), generator=generator)
    teacher = 2 * torch.randn((b, k, h, w), generator=generator)
    size = (h * factor, w * factor)
    labels = torch.randint(0, max(k - 1, 1), (b, *size), generator=generator)
    if confidence:
        full = functional.interpolate(logits, size=size, mode="bilinear")
        labels, logits = full.argmax(1), logits * confidence
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[0, 0, 0] = 0
    return logits.to(device, dtype), labels.to(device), teacher.to(device, dtype)


def run(fn, logits, labels, teacher, **options):
    """Both losses and the gradient of their sum weighted by 1 and 7."""
    x = logits.detach().requires_grad_()
    ohem, kl = fn(x, labels, teacher, **options)
    (grad,) = torch.autograd.grad(ohem + 7 * kl, x)
    return ohem, kl, grad


def check(logits, labels, teacher, slack=3e-6, **options):
    """Hold the kernels to the rule; returns what they returned."""
    double = None if teacher is None else teacher.double()
    truth = run(segmentation.segmentation_loss, logits.double(), labels, double, **options)
    eager = run(segmentation.segmentation_loss, logits, labels, teacher, **options)
    fused = run(segmentation_loss, logits, labels, teacher, **options)
    assert fused[2].dtype == logits.dtype
    assert fused[2].stride() == torch.empty_like(logits).stride()
    # a mean over the pixels of some size has a gradient of its inverse, apart from cancellation
    scale = max(float(truth[2].abs().max()), logits.shape[1] / logits.numel())
    for index, unit in enumerate((1.0, 1.0, scale)):
        assert_as_accurate(fused[index], eager[index], truth[index], slack * unit)
    return fused


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape, device):
    check(*make_inputs(shape, device))


@pytest.mark.parametrize("confidence", [0.0, 3.0], ids=["threshold", "largest"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_matches_reference_in_every_dtype(dtype, confidence, device):
    logits, labels, teacher = make_inputs((1, 5, 3, 4, 4), device, dtype, confidence)
    options = {"threshold": 0.7, "min_kept": 0.5}
    check(logits, labels.to(torch.uint8), teacher, **options)
    losses = functional.cross_entropy(
        functional.interpolate(logits.float(), scale_factor=4, mode="bilinear"),
        labels,
        ignore_index=255,
        reduction="none",
    )
    few = (losses > -math.log(0.7)).sum() < int((labels != 255).sum() * 0.5)
    assert few == bool(confidence)  # both ways of the selection are reached


def weights_of(classes, device):
    """Weights from 0.2 to 3, of which no two are equal."""
    return torch.linspace(0.2, 3, classes, device=device)


@pytest.mark.parametrize("min_kept", [1 / 16, 0.9], ids=["threshold", "largest"])
@pytest.mark.parametrize(
    ("shape", "with_teacher"),
    [("odd", True), ("odd", False), ("same", True), ("one-class", False)],
)
def test_classes_may_have_weights(shape, with_teacher, min_kept, device):
    logits, labels, teacher = make_inputs(SHAPES[shape], device)
    options = {"min_kept": min_kept, "class_weights": weights_of(SHAPES[shape][1], device)}
    ohem, kl, _ = check(logits, labels, teacher if with_teacher else None, **options)
    plain = segmentation_loss(logits, labels, teacher, min_kept=min_kept)
    assert ohem != plain[0] or shape == "one-class"  # whose loss is zero
    assert kl == (plain[1] if with_teacher else 0)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_weights_of_classes_in_short_dtypes_and_channels_last(dtype, device):
    logits, labels, teacher = (
        x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        for x in make_inputs((2, 5, 3, 4, 4), device, DTYPES[dtype], 2.0)
    )
    check(logits, labels.to(torch.uint8), teacher, class_weights=weights_of(5, device))


def test_weights_of_one_are_none(device):
    logits, labels, teacher = make_inputs(SHAPES["odd"], device)
    ones = run(segmentation_loss, logits, labels, teacher, class_weights=torch.ones(5).to(device))
    none = run(segmentation_loss, logits, labels, teacher)
    assert all(torch.equal(a, b) for a, b in zip(ones, none, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_belongs_to_the_divergence_alone(temperature, device):
    logits, labels, teacher = make_inputs((1, 5, 2, 3, 4), device)
    ohem, _, _ = check(logits, labels, teacher, temperature=temperature)
    assert torch.equal(ohem, segmentation_loss(logits, labels)[0])


def test_without_a_teacher(device):
    logits, labels, _ = make_inputs((1, 5, 2, 3, 4), device)
    assert check(logits, labels, None)[1] == 0


@pytest.mark.parametrize("term", [0, 1])
def test_one_term_alone_has_its_own_gradient(term, device):
    logits, labels, teacher = make_inputs(SHAPES["odd"], device)
    x = logits.requires_grad_()
    weights = [(1.0, 0.0), (0.0, 1.0)][term]
    (both,) = torch.autograd.grad(
        sum(w * y for w, y in zip(weights, segmentation_loss(x, labels, teacher), strict=True)), x
    )
    (alone,) = torch.autograd.grad(segmentation_loss(x, labels, teacher)[term], x)
    assert both.abs().max() > 0
    assert torch.equal(alone, both)


def test_student_and_teacher_may_differ_in_dtype(device):
    logits, labels, teacher = make_inputs((1, 5, 2, 3, 4), device)
    check(logits.bfloat16(), labels, teacher)


@pytest.mark.parametrize("difference", [0.0, 1e-3, 1e-2])
def test_divergence_of_nearly_equal_logits(difference, device):
    logits, labels, teacher = make_inputs((1, 5, 3, 4, 4), device)
    _, kl, grad = run(segmentation_loss, logits, labels, logits + difference * teacher)
    full = functional.interpolate(logits.double(), scale_factor=4, mode="bilinear")
    noise = functional.interpolate((difference * teacher).double(), scale_factor=4, mode="bilinear")
    truth = reference.logit_distillation(full, full + noise)
    assert kl >= 0
    assert abs(kl.item() - truth.item()) < 1e-7
    assert grad.isfinite().all()


def test_the_exact_maximum_serves_where_the_bound_is_far_off(device):
    logits, labels, teacher = make_inputs((1, 4, 2, 2, 4), device)
    logits[:, 0, 0], logits[:, 0, 1] = 500.0, -500.0
    logits[:, 1, 0], logits[:, 1, 1] = -500.0, 500.0
    teacher[:, 2, :, 0], teacher[:, 3, :, 1] = 400.0, 400.0
    # float32 resolves logits of 500 to 3e-5
    check(logits, labels, teacher, slack=1e-4)
    check(logits, labels, teacher, slack=1e-4, temperature=0.25)


@pytest.mark.fault("F9")
@pytest.mark.parametrize("fill", [255, -1, 5, 2**40])
def test_nothing_labelled_gives_zero(fill, device):
    logits, labels, _ = make_inputs((1, 5, 2, 2, 4), device)
    ohem, _, grad = check(logits, torch.full_like(labels, fill), None)
    assert ohem == 0
    assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_out_of_range_are_ignored(dtype, device):
    logits, labels, teacher = make_inputs((1, 5, 2, 3, 4), device)
    labels = labels.where(labels != 255, 3)
    labels[:, ::3] = 200 if dtype == torch.uint8 else -1
    labels[:, 1::3] = 5
    check(logits, labels.to(dtype), teacher, ignore_index=3)


def test_few_easy_pixels_give_zero(device):
    logits = torch.tensor([[30.0], [0.0]], device=device).view(1, 2, 1, 1)
    ohem, _, grad = check(logits, torch.zeros(1, 2, 2, device=device, dtype=torch.int64), None)
    assert ohem == 0
    assert not grad.any()


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("margin", [4.0, 12.0, 30.0])
@pytest.mark.parametrize("factor", [1, 4])
def test_nearly_certain_pixels_keep_their_digits(factor, margin, with_teacher, device):
    # at 12 the true class lacks 2e-5 of one, which has two digits left in float32
    logits, _, teacher = make_inputs((1, 5, 3, 4, factor), device)
    logits[:, 2] += margin
    labels = torch.full((1, 3 * factor, 4 * factor), 2, device=device)
    teacher = teacher if with_teacher else None
    logits.requires_grad_()
    loss, _ = segmentation_loss(logits, labels, teacher, min_kept=1.0)
    (grad,) = torch.autograd.grad(loss, logits)
    x = logits.detach().double().requires_grad_()
    full = functional.interpolate(x, scale_factor=factor, mode="bilinear")
    exact = functional.cross_entropy(full, labels)
    (truth,) = torch.autograd.grad(exact, x)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    for k in range(5):
        # float32 holds a logit to 2^-24 of its size, and a probability has that error
        assert (grad[:, k] - truth[:, k]).norm() < 1e-6 * margin * truth[:, k].norm()


def test_strides_do_not_matter_and_are_kept(device):
    logits, labels, teacher = make_inputs((2, 5, 3, 4, 2), device)
    wanted = run(segmentation_loss, logits, labels, teacher)
    last = logits.to(memory_format=torch.channels_last)
    got = check(last, labels, teacher.to(memory_format=torch.channels_last))
    assert got[2].is_contiguous(memory_format=torch.channels_last)
    wider = torch.stack([logits, logits], -1)[..., 0]
    sparse = torch.stack([labels, labels], -1)[..., 0]
    for other in (got, run(segmentation_loss, wider, sparse, teacher)):
        assert all(torch.equal(a, b) for a, b in zip(other, wanted, strict=True))


def test_nan_is_not_hidden(device):
    logits, labels, teacher = make_inputs((1, 5, 2, 2, 4), device)
    logits[0, 1, 0, 0] = torch.nan
    ohem, kl, grad = run(segmentation_loss, logits, labels, teacher)
    assert ohem.isnan()
    assert kl.isnan()
    assert grad[0, 1, 0, 0].isnan()


def test_pixels_that_share_the_last_place_share_its_gradient(device):
    logits = torch.zeros(2, 2, 2, 3, device=device)
    labels = torch.zeros(2, 4, 6, device=device, dtype=torch.int64)
    labels[0, 0] = 255
    ohem, _, grad = run(
        segmentation_loss, logits, labels, None, threshold=0.4, min_kept=0.3
    )  # no pixel is hard, 12 of 42 are wanted, all have the loss log 2
    x = logits.double().requires_grad_()
    full = functional.interpolate(x, scale_factor=2, mode="bilinear")
    mean = functional.cross_entropy(full, labels, ignore_index=255)
    (wanted,) = torch.autograd.grad(mean, x)
    assert ohem.item() == pytest.approx(math.log(2), rel=1e-6)
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-5, atol=1e-9)


def test_repeats_bit_by_bit_and_without_gradient(device):
    logits, labels, teacher = make_inputs((2, 5, 3, 3, 4), device, confidence=2.0)
    first = run(segmentation_loss, logits, labels, teacher, min_kept=0.9)
    second = run(segmentation_loss, logits, labels, teacher, min_kept=0.9)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    plain = segmentation_loss(logits, labels, teacher, min_kept=0.9)
    assert not plain[0].requires_grad
    assert torch.equal(torch.stack(plain), torch.stack(first[:2]))


def test_what_is_kept_between_the_passes(device):
    logits, labels, teacher = make_inputs((1, 2, 3, 3, 4), device)
    maps = [
        _segmentation_loss(logits, labels, *case)[3].nbytes
        for case in (
            (None, None, 4, 0.7, 1 / 16, 255, 1.0, False),
            (None, None, 4, 0.7, 1 / 16, 255, 1.0, True),
            (teacher, None, 4, 0.7, 1 / 16, 255, 1.0, True),
            (teacher, None, 4, 0.7, 1 / 16, 255, 2.0, True),
        )
    ]
    one = 4 * 32 * 16  # 16 cells of 16 pixels, in a program of 32
    assert maps == [one, 2 * one, 3 * one, 4 * one]


def test_opcheck(device):
    logits, labels, teacher = make_inputs((1, 2, 1, 2, 2), device)
    options = (weights_of(2, device), 2, 0.7, 0.9, 255, 1.0, True)
    torch.library.opcheck(_segmentation_loss, (logits.requires_grad_(), labels, teacher, *options))


def test_compiles_without_a_break(device):
    logits, labels, teacher = make_inputs((1, 2, 1, 2, 2), device)
    compiled = torch.compile(segmentation_loss, fullgraph=True, backend="aot_eager", dynamic=False)
    got = run(compiled, logits, labels, teacher)
    wanted = run(segmentation_loss, logits, labels, teacher)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("size", [(5, 9), (12, 16), (12, 12), (1, 1)])
def test_other_sizes_are_the_references(size, device):
    logits, _, teacher = make_inputs((1, 5, 3, 4, 1), device)
    labels = torch.ones((1, *size), device=device, dtype=torch.uint8)
    got = run(segmentation_loss, logits, labels, teacher)
    wanted = run(segmentation.segmentation_loss, logits, labels, teacher)
    same = all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert same == (size != (12, 16))  # four times, which the kernel rounds otherwise


def test_empty_batch(device):
    logits, labels, teacher = make_inputs((1, 5, 3, 4, 4), device)
    ohem, kl, grad = run(segmentation_loss, logits[:0], labels[:0], teacher[:0])
    assert (ohem, kl, grad.shape) == (0, 0, (0, 5, 3, 4))


def test_reference_is_the_published_composition():
    logits, labels, teacher = make_inputs((2, 5, 3, 4, 4), "cpu")
    full, target = (
        functional.interpolate(x, size=(12, 16), mode="bilinear", align_corners=False)
        for x in (logits, teacher)
    )
    ohem, kl = segmentation.segmentation_loss(logits, labels, teacher, temperature=2.0)
    assert torch.equal(ohem, reference.ohem_cross_entropy(full, labels))
    assert torch.equal(kl, reference.logit_distillation(full, target, 2.0))


def test_module(device):
    logits, labels, teacher = make_inputs((1, 5, 2, 2, 2), device)
    options = {"threshold": 0.6, "min_kept": 0.2, "ignore_index": 1, "temperature": 2.0}
    weights = weights_of(5, device)
    module = SegmentationLoss(**options, class_weights=weights.tolist()).to(device)
    assert not module.state_dict()
    got, options = module(logits, labels, teacher), {**options, "class_weights": weights}
    assert torch.equal(
        torch.stack(got), torch.stack(segmentation_loss(logits, labels, teacher, **options))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(1, 3, 2)}, r"\[B, K, h, w\].*\(1, 3, 2\)"),
        ({"logits": torch.zeros(1, 3, 2, 2, dtype=torch.int64)}, "int64"),
        ({"logits": torch.zeros(1, 0, 2, 2)}, r"\(1, 0, 2, 2\)"),
        ({"labels": torch.zeros(2, 8, 8, dtype=torch.uint8)}, r"\(2, 8, 8\)"),
        ({"labels": torch.zeros(1, 8, 8)}, "integer labels, got torch.float32"),
        ({"labels": torch.zeros(1, 8, 8, dtype=torch.uint8, device="meta")}, "labels on meta"),
        ({"teacher_logits": torch.zeros(1, 4, 2, 2)}, r"alike.*\(1, 4, 2, 2\)"),
        ({"threshold": 0.0}, "got 0.0 and 0.0625"),
        ({"min_kept": 1.5}, "got 0.7 and 1.5"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"class_weights": torch.ones(4)}, r"weights of 3 classes on cpu, got \(4,\)"),
        ({"class_weights": torch.ones(3, dtype=torch.float64)}, "torch.float64 on cpu"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {
        "logits": torch.zeros(1, 3, 2, 2),
        "labels": torch.zeros(1, 8, 8, dtype=torch.uint8),
        "teacher_logits": None,
    }
    with pytest.raises(ValueError, match=message):
        segmentation_loss(**{**arguments, **change})
