"""Fusions per sample, features that are constant for some images, and encoders per modality."""

import pytest
import torch
from torch import nn

from fastseg.errors import ConfigError
from fastseg.models import SegFormer
from fastseg.models.partial import rows_of
from tests.support.toy_backbone import ToySegmenter

NAMES = ["img", "depth", "event", "lidar"]


@pytest.fixture(params=[False, True], ids=["shared", "per_modality"])
def model(request):
    torch.manual_seed(0)
    own = NAMES if request.param else ()
    model = SegFormer("mit_nano", 5, 16, dropout=0, drop_path=0, own_encoders=own)
    return model.double()


@pytest.fixture
def images():
    return torch.randn(4, 2, 3, 32, 64, dtype=torch.float64)


def test_each_sample_is_fused_of_its_own_modalities(model, images):
    model.eval()
    fused = torch.tensor([[[1, 0], [0, 1], [1, 1], [0, 1]], [[1, 1], [1, 1], [1, 1], [1, 1]]])
    logits, features = model(images, fused=fused)
    assert [x.shape[:2] for x in features] == [(4, 2)] * 4
    assert logits.shape[0] == 4
    for row, (sample, kept) in enumerate([(0, [0, 2]), (1, [1, 2, 3]), (0, NAMES), (1, NAMES)]):
        positions = tuple(range(4)) if kept is NAMES else tuple(kept)
        alone = model(images[list(positions), sample : sample + 1], positions).logits
        torch.testing.assert_close(logits[row : row + 1], alone)


def test_features_of_the_other_images_are_constants(model, images):
    """Values are those of a whole pass; gradients those through the chosen images alone."""
    learning = torch.tensor([[1, 0], [2, 3]])
    marks = torch.zeros(4, 2, dtype=torch.bool)
    marks[learning, torch.arange(2)] = True
    weights = [torch.randn_like(x) for x in model(images).features]

    def gradients(output, chosen):
        model.zero_grad()
        total = output.logits.square().mean()
        pairs = zip(output.features, weights, strict=True)
        (total + sum((chosen * x * w).sum() for x, w in pairs)).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole, part = model(images), model(images, learning=learning)
    torch.testing.assert_close(part.logits, whole.logits)
    for x, y in zip(part.features, whole.features, strict=True):
        torch.testing.assert_close(x, y)
    found = gradients(part, 1.0)
    # the same by hand: detach the features of the others before everything that reads them
    mask = marks.view(4, 2, 1, 1, 1)
    features = [torch.where(mask, x, x.detach()) for x in model.encode(images)]
    by_hand = type(whole)(model.decode(model.fuse(features)), features)
    expected = gradients(by_hand, 1.0)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)


def test_an_encoder_whose_images_are_constant_has_no_gradient(images):
    model = SegFormer("mit_nano", 5, 16, dropout=0, drop_path=0, own_encoders=NAMES).double()
    model(images, learning=torch.tensor([[1, 1], [3, 3]])).logits.sum().backward()
    for name in NAMES:
        grads = [p.grad for p in model.modality_parameters(name)]
        assert all(g.any() for g in grads) == (name in ("depth", "lidar"))
        assert any(g.any() for g in grads) == (name in ("depth", "lidar"))


@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_subsets_of_encoders_per_modality(images, missing):
    torch.manual_seed(0)
    model = SegFormer("mit_nano", 5, 16, own_encoders=NAMES).double().eval()
    subsets = [(0,), (1, 3), (0, 1, 2, 3)]
    for positions, logits in zip(
        subsets, model.logits_of_subsets(images, subsets, missing), strict=True
    ):
        if missing == "drop":
            expected = model(images[list(positions)], positions).logits
        else:
            zeroed = torch.zeros_like(images)
            zeroed[list(positions)] = images[list(positions)]
            expected = model(zeroed).logits
        torch.testing.assert_close(logits, expected)


def test_features_without_the_head(model, images):
    model.eval()
    logits, features = model(images, head=False)
    assert logits.numel() == 0
    for x, y in zip(features, model(images).features, strict=True):
        torch.testing.assert_close(x, y)


def test_what_is_held_neither_learns_nor_trains(model, images):
    model.hold(model.fusion_and_head())
    model.train()
    assert model.training
    assert not any(module.training for module in model.decoder.modules())
    before = {k: v.clone() for k, v in model.decoder.state_dict().items()}
    model(images).logits.square().sum().backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    assert any(p.grad.any() for n, p in model.named_parameters() if not n.startswith("decoder"))
    assert all(torch.equal(v, before[k]) for k, v in model.decoder.state_dict().items())


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, output):
        return self.scale * output.features[3].mean((2, 3, 4))


def test_a_companion_reads_the_output_while_the_network_trains(model, images):
    model.add_companion("mean", Mean())
    assert "companions.mean.scale" in model.state_dict()
    output = model(images)
    torch.testing.assert_close(output.extras["mean"], output.features[3].mean((2, 3, 4)))
    output.extras["mean"].sum().backward()
    assert model.companions["mean"].scale.grad is not None
    assert not hasattr(model.eval()(images), "extras")


def test_a_model_without_a_keyword_is_refused():
    toy = ToySegmenter(NAMES, 5, 0.1)
    with pytest.raises(ConfigError, match=r"method x needs a model with .head.*ToySegmenter"):
        toy.must_take("head", "the method x")
    SegFormer("mit_nano", 5, 16).must_take("head", "the method x")


def test_a_function_chooses_the_images_that_learn(model, images):
    """It sees the features of all, without gradients, once; then all is as with given rows."""
    model.eval()
    rows, calls = torch.tensor([[1, 0], [2, 3]]), []

    def choose(features):
        calls.append(features)
        return rows

    weights = [torch.randn_like(x) for x in model(images).features]

    def gradients(output):
        model.zero_grad()
        pairs = zip(output.features, weights, strict=True)
        (output.logits.square().mean() + sum((x * w).sum() for x, w in pairs)).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    given, chosen = model(images, learning=rows), model(images, learning=choose)
    (seen,) = calls
    assert not any(x.requires_grad for x in seen)
    for x, y in zip([*seen, *chosen.features], [*given.features] * 2, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(chosen.logits, given.logits)
    assert all(x.movedim(2, -1).is_contiguous() for x in chosen.features)
    found, expected = gradients(chosen), gradients(given)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)
    with torch.no_grad():
        torch.testing.assert_close(model(images, learning=choose).logits, given.logits)


def test_the_first_pass_leaves_no_weights_behind_that_do_not_learn():
    """Autocast keeps what it casts; a weight cast without gradients must not serve the others."""
    model = SegFormer("mit_nano", 5, 16, dropout=0, drop_path=0)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(2, 1, 3, 64, 64), learning=lambda x: torch.tensor([[1]]))
    output.logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())


@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_of_each_sample(channels_last):
    x = torch.randn(4, 3, 2, 5, 5)
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    rows = torch.tensor([[3, 0, 1], [2, 2, 0]])
    found = rows_of(x, rows)
    assert found.movedim(2, -1).is_contiguous() == channels_last
    for w in range(2):
        for b in range(3):
            assert torch.equal(found[w, b], x[rows[w, b], b])


def test_what_is_held_and_learns_is_in_evaluation_mode_alone(model, images):
    model.hold(model.children(), learn=True)
    model.hold(model.fusion_and_head())
    model.train()
    assert [module for module in model.modules() if module.training] == [model]
    model(images).logits.square().sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.any()) == (not name.startswith("decoder"))
