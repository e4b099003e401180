"""Terms that compare with the labels: weights of the classes, and soft Dice."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from fastseg import kernels
from fastseg.config.presets.registry import get_preset
from fastseg.engine.context import RunContext
from fastseg.engine.stage_opening import check_models
from fastseg.errors import ConfigError
from fastseg.methods.baseline import OhemOptions, label_terms
from fastseg.methods.losses.labels import class_weights_on, dice_loss


def make_inputs(classes=4, side=5, factor=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((2, classes, side, side + 1), generator=generator, dtype=dtype)
    size = (2, side * factor, (side + 1) * factor)
    labels = torch.randint(0, classes - 1, size, generator=generator)  # the last is absent
    labels[torch.rand(size, generator=generator) < 0.3] = 255
    return logits, labels


def plain_dice(logits, labels):
    """As the formula reads, with torch's interpolation and gradient."""
    full = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear").softmax(1)
    valid, found = labels != 255, []
    for k in range(logits.shape[1]):
        own = (labels == k).to(full.dtype)
        if own.any():
            common, predicted = (full[:, k] * own).sum(), (full[:, k] * valid).sum()
            found.append(1 - (2 * common + 1) / (predicted + own.sum() + 1))
    return torch.stack(found).mean()


def with_gradient(fn, logits, labels):
    x = logits.detach().requires_grad_()
    loss = fn(x, labels)
    return loss, torch.autograd.grad(3 * loss, x)[0]


@pytest.mark.parametrize("factor", [1, 4])
def test_dice_is_its_formula(factor):
    logits, labels = make_inputs(factor=factor)
    for got, wanted in zip(
        with_gradient(dice_loss, logits, labels),
        with_gradient(plain_dice, logits, labels),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dice_computes_in_float32(dtype):
    logits, labels = make_inputs()
    logits = logits.to(dtype)
    exact = with_gradient(dice_loss, logits.double(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = with_gradient(dice_loss, logits, labels.to(torch.uint8))
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-2, atol=1e-6)


def test_dice_of_a_sure_network_is_nothing_and_of_a_wrong_one_all():
    _, labels = make_inputs(factor=1)
    right = 50 * functional.one_hot(labels.where(labels != 255, 0), 4).movedim(-1, 1).double()
    assert dice_loss(right, labels) < 1e-12
    assert dice_loss(right.roll(1, 1), labels) > 0.9


@pytest.mark.parametrize("batch", [0, 2])
def test_dice_without_labels_teaches_nothing(batch):
    logits, labels = make_inputs()
    loss, gradient = with_gradient(dice_loss, logits[:batch], torch.full_like(labels[:batch], 255))
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("wanted", [{"ohem"}, {"dice"}, {"logit"}, {"ohem", "dice", "logit"}])
def test_only_active_terms_are_there_in_a_fixed_order(wanted):
    logits, labels = make_inputs(dtype=torch.float32)
    active = dict.fromkeys(wanted, 1.0)
    terms = label_terms(active, OhemOptions(), logits, logits + 1, labels)
    assert list(terms) == [name for name in ("ohem", "dice", "logit") if name in wanted]


def test_weights_reach_the_cross_entropy_alone():
    logits, labels = make_inputs(dtype=torch.float32)
    weights = (0.5, 1.0, 3.0, 1.0)
    active = {"ohem": 1.0, "dice": 1.0, "logit": 1.0}
    plain, weighted = (
        label_terms(active, options, logits, logits.flip(0), labels)
        for options in (OhemOptions(), OhemOptions(class_weights=weights))
    )
    wanted, _ = kernels.segmentation_loss(logits, labels, class_weights=torch.tensor(weights))
    assert weighted["ohem"] == wanted != plain["ohem"]
    assert weighted["dice"] == plain["dice"]
    assert weighted["logit"] == plain["logit"]


def test_weights_are_copied_to_a_device_once():
    cpu = torch.device("cpu")
    assert class_weights_on((), cpu) is None
    assert class_weights_on((1.0, 2.0), cpu) is class_weights_on((1.0, 2.0), cpu)
    with torch._subclasses.FakeTensorMode():
        forecast = class_weights_on((3.0, 4.0), cpu)
    assert type(forecast) is not torch.Tensor
    assert class_weights_on((3.0, 4.0), cpu).tolist() == [3.0, 4.0]


@pytest.mark.parametrize("weights", [(0.0, 1.0), (-1.0,), (float("nan"),)])
def test_weights_must_be_positive_numbers(weights):
    with pytest.raises(ValueError, match="class_weights must be a list whose values are above 0"):
        OhemOptions(class_weights=weights)


def test_weights_must_be_one_per_class(scenes):
    config = get_preset("debug")
    losses = replace(config.losses, class_weights=(1.0, 2.0))
    config = replace(config, data=replace(config.data, root=scenes), losses=losses)
    with pytest.raises(ConfigError, match="has 2 numbers, and the data set has 25 classes"):
        check_models(RunContext(config))
