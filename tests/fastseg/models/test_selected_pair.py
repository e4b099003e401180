"""Selection between two frozen networks: values, gradients, and the model that holds both."""

import copy
from functools import partial

import pytest
import torch
from torch.nn import functional

from fastseg.engine.speed.cast_weights import ShortWeights
from fastseg.errors import ConfigError
from fastseg.models import BACKBONES, SegFormer
from fastseg.models.selected_pair import SelectedPair, Selection
from tests.support.toy_backbone import ToySegmenter

M, K, TAU = 3, 5, 0.2
SUBSETS = [(0,), (1, 2), (0, 1, 2)]


@pytest.fixture(params=["shared", "per_modality"])
def pair(request):
    torch.manual_seed(0)
    own = ("img", "depth", "event") if request.param == "per_modality" else ()
    new = partial(SegFormer, "mit_nano", K, 16, own_encoders=own)
    network = SelectedPair(new(), new(), TAU, name="first")
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.normal_(std=0.5)
    return network.double().train()


@pytest.fixture
def images():
    return torch.randn(M, 2, 3, 32, 32, dtype=torch.float64)


def selection_of(channels=4, dtype=torch.float64):
    torch.manual_seed(1)
    return Selection(channels, TAU).to(dtype)


def candidates_of(channels=4, batch=2):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, batch, channels, 5, 6, generator=generator, dtype=torch.float64)


def scores_of(selection, candidates):
    """``s_v [V, B, h, w]``, sums over the window and the channels as the formula has them."""
    found = []
    for net, x in zip(selection.scores, candidates, strict=True):
        deep, point = net
        padded, (h, w) = functional.pad(x, (1, 1, 1, 1)), x.shape[-2:]
        y = torch.zeros_like(x) + deep.bias.view(1, -1, 1, 1)
        for i in range(3):
            for j in range(3):
                y = (
                    y
                    + deep.weight[:, 0, i, j].view(1, -1, 1, 1) * padded[..., i : i + h, j : j + w]
                )
        z = (y * point.weight.view(1, -1, 1, 1)).sum(1) + point.bias
        found.append(1 / (1 + torch.exp(-z)))
    return torch.stack(found)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_forward_pass_is_the_published_selection(batch):
    selection, x = selection_of(), candidates_of(batch=batch)
    y = (1 + scores_of(selection, x)[:, :, None]) * x
    wanted, first = torch.empty_like(x[0]), torch.empty(x[0].shape, dtype=torch.bool)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[1:])).tolist():
        place = tuple(index)
        best = 0 if y[(0, *place)] >= y[(1, *place)] else 1
        wanted[place], first[place] = x[(best, *place)], best == 0
    for grads in (True, False):
        with torch.set_grad_enabled(grads):
            out, taken = selection(*x)
        assert torch.equal(out, wanted)
        assert torch.equal(taken, first)
    assert 0 < first.sum() < first.numel()


def test_gradients_are_those_of_the_formula():
    """dL/dy_v = o pi_v (x_v - sum_u pi_u x_u) / tau, and its sum over channels times s (1 - s)."""
    selection, x = selection_of(), candidates_of()
    o = torch.randn_like(x[0])
    x.requires_grad_()
    out, taken = selection(*x)
    (out * o).sum().backward()
    with torch.no_grad():
        s = scores_of(selection, x)
        pi = torch.softmax((1 + s[:, :, None]) * x / TAU, dim=0)
        of_y = o * pi * (x - (pi * x).sum(0)) / TAU
        before = (of_y * x).sum(2) * s * (1 - s)
    for v, (deep, point) in enumerate(selection.scores):
        torch.testing.assert_close(point.bias.grad, before[v].sum().view(1), rtol=1e-13, atol=1e-14)
        # through the depthwise convolution's bias: the pre-sigmoid gradient times the 1x1 weight
        wanted = before[v].sum() * point.weight.flatten()
        torch.testing.assert_close(deep.bias.grad, wanted, rtol=1e-13, atol=1e-14)
    # candidates: the hard weight, the factor 1 + s, and the score's own convolution
    probe = x.detach().requires_grad_()
    s = scores_of(selection, probe)
    through = (s * (of_y * x.detach()).sum(2)).sum()
    (conv,) = torch.autograd.grad(through, probe)
    hard = torch.stack([taken, ~taken]) * o
    wanted = hard + of_y * (1 + s[:, :, None].detach()) + conv
    torch.testing.assert_close(x.grad, wanted, rtol=1e-12, atol=1e-13)


def test_gradients_of_the_scores_are_finite_differences_of_the_soft_selection():
    selection, x = selection_of(), candidates_of()
    o = torch.randn_like(x[0])
    (selection(*x)[0] * o).sum().backward()

    def soft():
        y = (1 + scores_of(selection, x)[:, :, None]) * x
        return float((o * (torch.softmax(y / TAU, 0) * x).sum(0)).sum())

    step = 1e-6
    with torch.no_grad():
        for p in selection.parameters():
            flat, grad = p.view(-1), p.grad.flatten()
            for i in range(0, len(flat), 5):
                value = flat[i].clone()
                ends = []
                for sign in (1, -1):
                    flat[i] = value + sign * step
                    ends.append(soft())
                flat[i] = value
                slope = (ends[0] - ends[1]) / (2 * step)
                assert slope == pytest.approx(float(grad[i]), rel=1e-5, abs=1e-8)


def test_ties_go_to_the_first():
    selection, x = selection_of(), candidates_of()[0]
    selection.scores[1].load_state_dict(selection.scores[0].state_dict())
    out, taken = selection(x, x.clone())
    assert taken.all()
    assert torch.equal(out, x)


def test_short_candidates_are_copied_as_they_are():
    selection, x = selection_of(dtype=torch.bfloat16), candidates_of().bfloat16()
    out, taken = selection(*x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, torch.where(taken, *x))
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in selection.parameters())


@pytest.mark.parametrize(
    ("backbone", "count"), [("mit_b0", 11_272), ("mit_b1", 22_536), ("mit_b5", 22_536)]
)
def test_the_number_of_parameters_is_the_stated_one(backbone, count):
    with torch.device("meta"):
        new = partial(SegFormer, backbone, 25, 16)
        network = SelectedPair(new(), new(), TAU, name="first")
    levels = sum(p.numel() for p in network.levels.parameters())
    assert levels == count == sum(22 * c + 2 for c in BACKBONES[backbone].widths)
    learns = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert learns == count + 22 * 25 + 2


def definition(pair, images, positions):
    """Logits by the steps of the method, from the parts of both networks."""
    rows = list(positions)
    encode = [network.encode(images[rows], positions) for network in (pair.full, pair.robust)]
    mean = [[x.mean(0) for x in levels] for levels in encode]

    def select(selection, *both):
        x = torch.stack(both)
        y = (1 + scores_of(selection, x)[:, :, None]) * x
        return torch.where(y[0] >= y[1], *both)

    features = [select(*args) for args in zip(pair.levels, *mean, strict=True)]
    return select(pair.last, pair.full.decode(mean[0]), pair.robust.decode(features)), encode[1]


@pytest.mark.parametrize("positions", SUBSETS, ids=str)
def test_the_model_is_its_definition(pair, images, positions):
    logits, features = pair(images[list(positions)], positions)
    wanted, robust = definition(pair, images, positions)
    torch.testing.assert_close(logits, wanted)
    assert all(map(torch.equal, features, robust))
    assert not any(x.requires_grad for x in features)


@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_all_subsets_are_scored_from_one_encoding_and_counted(pair, images, missing, monkeypatch):
    pair.eval()
    calls = []
    for network in (pair.full, pair.robust):
        encode = network.encode
        monkeypatch.setattr(
            network, "encode", lambda *a, _e=encode, **b: calls.append(len(a[0])) or _e(*a, **b)
        )
    with torch.no_grad():
        found = list(pair.logits_of_subsets(images, SUBSETS, missing))
    assert sum(calls) <= 2 * 2 * M  # and of blank images
    shares = pair.take_shares()
    assert pair.take_shares() == {}
    for positions, logits in zip(SUBSETS, found, strict=True):
        seen = images
        if missing == "zero":
            kept = torch.zeros(M, 1, 1, 1, 1).index_fill_(0, torch.tensor(positions), 1)
            seen, positions_ = images * kept, tuple(range(M))
        else:
            seen, positions_ = images[list(positions)], positions
        with torch.no_grad():
            torch.testing.assert_close(logits, pair(seen, positions_).logits)
        counts = shares[positions]
        assert counts.shape == (len(pair.shares), 2)
        sizes = [2 * w * (8 >> i) ** 2 for i, w in enumerate(pair.widths)]
        assert counts[:, 1].tolist() == [*sizes, 2 * K * 64]
        assert ((counts[:, 0] >= 0) & (counts[:, 0] <= counts[:, 1])).all()
    assert any((x[:, 0] != 0).any() and (x[:, 0] != x[:, 1]).any() for x in shares.values())


def test_shares_add_up_over_batches(pair, images):
    pair.eval()
    with torch.no_grad():
        list(pair.logits_of_subsets(images, SUBSETS))
        whole = pair.take_shares()
        for i in range(2):
            list(pair.logits_of_subsets(images[:, i : i + 1], SUBSETS))
    parts = pair.take_shares()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_fusions_of_samples_are_those_of_each_alone(pair, images):
    fused = torch.tensor([[[1, 0], [0, 1], [1, 1]]])
    logits = pair(images, fused=fused).logits
    for b, rows in enumerate([(0, 2), (1, 2)]):
        alone = pair(images[list(rows), b : b + 1], rows).logits
        torch.testing.assert_close(logits[b : b + 1], alone)


def test_only_the_selections_learn_and_nothing_else_moves(pair, images):
    before = copy.deepcopy(pair.state_dict())
    pair.train()
    assert not any(m.training for x in (pair.full, pair.robust) for m in x.modules())
    optimizer = torch.optim.AdamW([p for p in pair.parameters() if p.requires_grad], lr=0.1)
    pair(images).logits.square().sum().backward()
    grads = {name: p.grad for name, p in pair.named_parameters() if p.grad is not None}
    assert all(name.startswith(("levels.", "last.")) for name in grads)
    assert all(grad.any() for name, grad in grads.items() if name.startswith("last."))
    assert any(grad.any() for name, grad in grads.items() if name.startswith("levels."))
    optimizer.step()
    after = pair.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all(name.startswith(("levels.", "last.")) for name in moved)


def test_frozen_it_computes_what_it_computes_in_evaluation(pair, images):
    pair.eval()
    with torch.no_grad():
        wanted = pair(images).logits
        found = pair.freeze(torch.float64)(images).logits
    torch.testing.assert_close(found, wanted)
    assert not any(p.requires_grad for p in pair.parameters())


def test_short_weights_record_no_gradients_of_what_does_not_learn(images):
    torch.manual_seed(0)
    new = partial(SegFormer, "mit_nano", K, 16)
    network = SelectedPair(new(), new(), TAU, name="first").train()
    with ShortWeights([network], torch.bfloat16).in_use():
        copied = {k: m.weight for k, m in network.named_modules() if hasattr(m, "weight")}
        learns = {k for k, weight in copied.items() if weight is not None and weight.requires_grad}
        assert all(name.startswith(("levels.", "last.")) for name in learns)
        network(images.bfloat16()).logits.float().square().sum().backward()
    assert all(p.grad is not None for p in network.last.parameters())
    assert all(p.grad is None for p in network.robust.parameters())


def test_the_parts_of_both_networks_are_told(pair):
    units = pair.units()
    assert len(units) == len(set(map(id, units))) == 2 * len(pair.full.units()) + 5
    layers = [level.layers for level in pair.attention_levels(2 * M, 64)]
    own = [level.layers for level in pair.robust.attention_levels(2 * M, 64)]
    assert [len(x) for x in layers] == [2 * len(x) for x in own]
    assert len(pair.modality_parameters("img")) == 2 * len(pair.robust.modality_parameters("img"))
    pair.recompute(True)
    assert not any(getattr(m, "checkpointing", False) for m in pair.modules())


def test_models_without_parts_and_of_other_widths_are_refused():
    toy = ToySegmenter(["img", "depth"], K, 0.1)
    network = SegFormer("mit_nano", K, 16)
    with pytest.raises(ConfigError, match="ToySegmenter has one call for all"):
        SelectedPair(network, toy, TAU, name="first")
    with torch.device("meta"), pytest.raises(ConfigError, match="same channels"):
        SelectedPair(SegFormer("mit_b0", K, 16), SegFormer("mit_b1", K, 16), TAU, name="first")
