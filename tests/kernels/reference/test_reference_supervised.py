"""Cross-entropy of the hard pixels, against a loop over the pixels."""

import math

import pytest
import torch
from torch.nn import functional

from fastseg.kernels import reference
from fastseg.kernels.reference import supervised
from tests.support.optional_hypothesis import given, settings, st


def make_inputs(shape=(2, 5, 6, 7), seed=0, confidence=1.0):
    """Logits that favour the true class by ``confidence``, and labels with ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    b, k, h, w = shape
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, k, (b, h, w), generator=generator)
    logits.scatter_add_(1, labels[:, None], torch.full_like(logits[:, :1], confidence))
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits, labels


def ohem_by_loop(logits, labels, threshold=0.7, min_kept=1 / 16, weights=None):
    """The rule as stated: hard pixels, or the largest losses when these are too few."""
    losses = []
    for n in range(labels.shape[0]):
        for r in range(labels.shape[1]):
            for c in range(labels.shape[2]):
                y = int(labels[n, r, c])
                if 0 <= y < logits.shape[1]:
                    row = logits[n, :, r, c]
                    weight = 1 if weights is None else weights[y]
                    losses.append(weight * (row.logsumexp(0) - row[y]))
    hard = [loss for loss in losses if loss.item() > -math.log(threshold)]
    least = math.floor(len(losses) * min_kept)
    if len(hard) < least:
        hard = sorted(losses, key=lambda loss: -loss.item())[:least]
    return torch.stack(hard).mean() if hard else logits.sum() * 0


@pytest.mark.parametrize("confidence", [0.0, 2.0, 6.0, 9.0], ids=lambda c: f"confidence{c:g}")
@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (1, 1, 4, 4), (1, 200, 3, 5), (3, 2, 1, 1)])
def test_equals_loop_over_pixels(shape, confidence):
    logits, labels = make_inputs(shape, confidence=confidence)
    logits.requires_grad_()
    loss = reference.ohem_cross_entropy(logits, labels)
    wanted = ohem_by_loop(logits, labels)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(loss, logits)
    (wanted_grad,) = torch.autograd.grad(wanted, logits)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("min_kept", [0.0, 0.8])
def test_weights_of_classes_take_part_in_the_choice(min_kept):
    logits, labels = make_inputs(confidence=2.0)
    logits.requires_grad_()
    weights = torch.tensor([0.1, 4.0, 1.0, 1.0, 0.5])
    loss = reference.ohem_cross_entropy(logits, labels, 0.7, min_kept, class_weights=weights)
    wanted = ohem_by_loop(logits, labels, 0.7, min_kept, weights.double())
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    (grad,), (wanted_grad,) = (torch.autograd.grad(x, logits) for x in (loss, wanted))
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-10, atol=1e-14)


def test_all_kept_weighted_losses_are_torch_s_before_its_mean():
    logits, labels = make_inputs()
    weights = torch.tensor([0.1, 4.0, 1.0, 1.0, 0.5])
    losses = functional.cross_entropy(
        logits, labels, weights.double(), ignore_index=255, reduction="none"
    )
    loss = reference.ohem_cross_entropy(logits, labels, 1.0, 1.0, class_weights=weights)
    torch.testing.assert_close(loss, losses[labels != 255].mean())


def test_both_branches_are_reached():
    easy, labels = make_inputs(confidence=9.0)
    losses = torch.nn.functional.cross_entropy(easy, labels, ignore_index=255, reduction="none")
    hard = int((losses > -math.log(0.7)).sum())
    assert hard < int((labels != 255).sum()) // 16  # the largest losses are taken
    difficult, labels = make_inputs(confidence=0.0)
    wanted = ohem_by_loop(difficult, labels, min_kept=0.0)  # the hard pixels are taken
    torch.testing.assert_close(reference.ohem_cross_entropy(difficult, labels), wanted)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    confidence=st.floats(0, 10),
    threshold=st.floats(0.05, 1.0),
    min_kept=st.floats(0.0, 1.0),
)
def test_both_selections_agree(seed, confidence, threshold, min_kept):
    generator = torch.Generator().manual_seed(seed)
    losses = (torch.randn(64, generator=generator) - confidence).exp().requires_grad_()
    hard = losses.detach() > -math.log(threshold)
    least = torch.tensor(int(48 * min_kept))
    by_count = supervised._mean_of_largest_by_count(losses, hard, least)
    by_rank = supervised._mean_of_largest_by_rank(losses, hard, least)
    torch.testing.assert_close(by_count, by_rank)
    grads = [torch.autograd.grad(value, losses)[0] for value in (by_count, by_rank)]
    torch.testing.assert_close(*grads)


@pytest.mark.fault("F9")
@pytest.mark.parametrize("value", [255, -1, 5, 1000])
def test_nothing_labelled_gives_zero_and_zero_gradient(value):
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    loss = reference.ohem_cross_entropy(logits, torch.full((2, 4, 4), value))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_few_easy_pixels_give_zero_where_the_published_code_gives_nan():
    logits = torch.tensor([[30.0], [0.0]]).view(1, 2, 1, 1).requires_grad_()
    loss = reference.ohem_cross_entropy(logits, torch.zeros(1, 1, 1, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_ignored_pixels_get_no_gradient_and_do_not_count():
    logits, labels = make_inputs(confidence=0.0)
    logits.requires_grad_()
    reference.ohem_cross_entropy(logits, labels).backward()
    ignored = (labels == 255)[:, None].expand_as(logits)
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].any()
    other = labels.where(labels != 255, 7)
    torch.testing.assert_close(
        reference.ohem_cross_entropy(logits, other, ignore_index=7),
        reference.ohem_cross_entropy(logits, labels),
    )


def test_nearly_certain_pixels_keep_their_digits():
    # the true class lacks 2e-5 of one, which has two digits left in float32
    logits, labels = make_inputs(confidence=13.0)
    x, exact = logits.float().requires_grad_(), logits.float().double().requires_grad_()
    for y in (x, exact):
        reference.ohem_cross_entropy(y, labels, min_kept=1.0).backward()
    place = labels.where(labels != 255, 0)[:, None]
    at_class, truth = (y.grad.gather(1, place).double() for y in (x, exact))
    assert truth.any()
    assert (at_class - truth).norm() < 1e-5 * truth.norm()
    # the value and what the other classes get are PyTorch's
    plain = logits.float().requires_grad_()
    mean = functional.cross_entropy(plain, labels.where(labels != 255, -100))
    mean.backward()
    torch.testing.assert_close(reference.ohem_cross_entropy(x, labels, min_kept=1.0), mean)
    others = torch.ones_like(plain, dtype=torch.bool).scatter(1, place, False)
    torch.testing.assert_close(x.grad[others], plain.grad[others])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_narrow_integer_labels_serve(dtype):
    logits, labels = make_inputs()
    torch.testing.assert_close(
        reference.ohem_cross_entropy(logits, labels.to(dtype)),
        reference.ohem_cross_entropy(logits, labels),
    )


def test_computes_in_float32_for_bfloat16_and_under_autocast():
    logits, labels = make_inputs()
    half = logits.bfloat16().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = reference.ohem_cross_entropy(half, labels)
    assert loss.dtype == torch.float32
    wanted = reference.ohem_cross_entropy(half.detach().double(), labels)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("select", ["count", "rank"])
def test_nan_is_not_hidden(select, monkeypatch):
    if select == "rank":
        monkeypatch.setattr(
            supervised, "_mean_of_largest_by_count", supervised._mean_of_largest_by_rank
        )
    logits, labels = make_inputs()
    labels[0, 0, 0] = 1
    logits[0, 1, 0, 0] = torch.nan
    assert reference.ohem_cross_entropy(logits, labels).isnan()


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        ((2, 5, 4), (2, 4), {}, r"\[B, K, H, W\].*\(2, 5, 4\)"),
        ((2, 5, 4, 4), (2, 4, 5), {}, r"\(2, 4, 5\)"),
        ((2, 5, 4, 4), (2, 4, 4), {"threshold": 0.0}, "threshold must be in .* got 0.0"),
        ((2, 5, 4, 4), (2, 4, 4), {"min_kept": 1.5}, "got 0.7 and 1.5"),
    ],
)
def test_wrong_arguments_are_named(logits, labels, options, message):
    with pytest.raises(ValueError, match=message):
        reference.ohem_cross_entropy(
            torch.zeros(logits), torch.zeros(labels, dtype=torch.int64), **options
        )
