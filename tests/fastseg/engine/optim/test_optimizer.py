import math

import pytest
import torch
from torch import nn

from fastseg.config.sections import OptimConfig
from fastseg.engine.optim.optimizer import build_optimizer, guarded_step, set_learning_rate
from fastseg.models import SegFormer
from fastseg.models.backbones.mit import Backbone


def make(config=OptimConfig()):  # noqa: B008
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(module, config)
    set_learning_rate(optimizer, 1e-2)
    return module, optimizer


def test_only_matrices_decay():
    module, optimizer = make()
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decays[id(module[0].weight)] == 0.01
    assert decays[id(module[0].bias)] == decays[id(module[1].weight)] == 0.0
    assert len(decays) == 4


def test_a_step_moves_the_weights_and_clears_the_gradients():
    module, optimizer = make()
    before = module[0].weight.detach().clone()
    module(torch.randn(5, 3)).square().sum().backward()
    norm, skipped = guarded_step(optimizer, 0.0)
    assert skipped == 0
    assert norm > 0
    assert not torch.equal(module[0].weight, before)
    assert module[0].weight.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_gradient_changes_nothing(bad):
    module, optimizer = make()
    module(torch.randn(5, 3)).square().sum().backward()
    guarded_step(optimizer, 0.0)
    before = [p.detach().clone() for p in module.parameters()]
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    steps = [s["step"].item() for s in optimizer.state.values()]
    (module(torch.randn(5, 3)).sum() * bad).backward()
    norm, skipped = guarded_step(optimizer, 1.0)
    assert skipped == 1
    assert not norm.isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(
        torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimizer.state.values(), strict=True)
    )
    assert steps == [s["step"].item() for s in optimizer.state.values()]


def test_clipping_bounds_the_update():
    module, optimizer = make()
    (1e4 * module(torch.randn(5, 3)).square().sum()).backward()
    norm, _ = guarded_step(optimizer, 1.0)
    moments = torch.cat([s["exp_avg"].flatten() for s in optimizer.state.values()])
    assert norm > 1
    assert moments.norm() == pytest.approx(0.1, rel=1e-3)  # (1 - beta1) * max_norm


@pytest.mark.parametrize(
    "change", [{"weight_decay": -1}, {"beta1": 1.0}, {"eps": 0}, {"max_norm": -1}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        OptimConfig(**change)


@pytest.fixture(params=["shared", "own"])
def segmenter(request):
    names = ("rgb", "lidar") if request.param == "own" else ()
    return SegFormer(Backbone((8, 8, 8, 8), (2, 1, 1, 1), (1, 1, 1, 1)), 3, 8, own_encoders=names)


def test_the_rate_of_a_layer_falls_towards_the_images(segmenter):
    optimizer = build_optimizer(segmenter, OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(segmenter.parameters()))
    # five blocks and the head
    depths = {"patch_embed1": 5, "block1.0": 5, "block1.1": 4, "patch_embed2": 3, "block2": 3}
    # blocks have norms of these names, too
    depths |= {"block3": 2, "block4": 1, "norm1": 4, "norm2": 3, "norm4": 1, "decoder": 0}
    for name, parameter in segmenter.named_parameters():
        found = [depth for part, depth in depths.items() if f".{part}." in f".{name}"]
        assert not found or rates[parameter] == 0.5 ** found[0], name


def test_layers_leave_the_order_of_states_alone(segmenter):
    plain, layered = (
        build_optimizer(segmenter, OptimConfig(layer_decay=decay)) for decay in (1.0, 0.5)
    )
    orders = [
        [id(p) for group in optimizer.param_groups for p in group["params"]]
        for optimizer in (plain, layered)
    ]
    assert orders[0] == orders[1]
    assert len(plain.param_groups) == 2 < len(layered.param_groups)


def test_a_layer_multiplies_the_factor_of_its_network(segmenter):
    networks = nn.ModuleDict({"student": segmenter})
    optimizer = build_optimizer(networks, OptimConfig(layer_decay=0.5), factors={"student": 0.1})
    set_learning_rate(optimizer, 1.0)
    assert {round(group["lr"], 9) for group in optimizer.param_groups} == {
        round(0.1 * 0.5**depth, 9) for depth in range(6)
    }
