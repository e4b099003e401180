"""apex by a stand-in with its interface: the real one needs a GPU."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastseg import doctor, train
from fastseg.checkpoint.state import TrainingStates
from fastseg.checkpoint.state_files import load_state
from fastseg.config.sections import OptimConfig
from fastseg.distributed.ranks import Ranks
from fastseg.engine.context import RunContext
from fastseg.engine.optim import nvidia_apex
from fastseg.engine.optim.optimizer import (
    build_optimizer,
    choose_optimizer,
    guarded_step,
    set_learning_rate,
)
from fastseg.errors import ConfigError

ALONE = Ranks(torch.device("cpu"))


def make(kind, config=OptimConfig()):  # noqa: B008
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = build_optimizer(module, config, kind)
    set_learning_rate(optimizer, 1e-2)
    return module, optimizer


def run(module, optimizer, steps, bad=()):
    skips = []
    for step in steps:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        (module(x).square().sum() * (math.nan if step in bad else 1.0)).backward()
        skips.append(float(guarded_step(optimizer, 1.0)[1]))
    return skips


def same(left, right, **tolerance):
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    for (name, a), (_, b) in pairs:
        torch.testing.assert_close(a, b, msg=name, **tolerance)


def test_fused_adam_is_adamw_also_around_skipped_steps(apex):
    reference, fused = make("adamw"), make("apex_adam")
    bad = (0, 3, 4)  # the first step too: apex would count it
    assert run(*reference, range(8), bad) == run(*fused, range(8), bad) == [1, 0, 0, 1, 1, 0, 0, 0]
    same(reference[0], fused[0], rtol=1e-5, atol=1e-7)


def test_a_skipped_step_changes_nothing(apex):
    for kind in ("apex_adam", "apex_lamb"):
        module, optimizer = make(kind)
        run(module, optimizer, range(2))
        before = {k: v.clone() for k, v in module.state_dict().items()}
        slots = [v.clone() for s in optimizer.state.values() for v in s.values()]
        assert run(module, optimizer, [2], bad=(2,)) == [1]
        assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
        now = [v for s in optimizer.state.values() for v in s.values()]
        assert all(torch.equal(a, b) for a, b in zip(slots, now, strict=True))


@pytest.mark.parametrize(("first", "second"), [("adamw", "apex_adam"), ("apex_adam", "adamw")])
def test_either_adam_continues_the_files_of_the_other(apex, tmp_path, first, second):
    whole = make("adamw")
    run(*whole, range(8))
    half = make(first)
    run(*half, range(4))
    TrainingStates(tmp_path).save(*half, {"stage": "a", "step": 4}, keep=1)
    rest = make(second)
    load_state(tmp_path / "step-00000004", *rest)
    set_learning_rate(rest[1], 1e-2)
    run(*rest, range(4, 8))
    same(rest[0], whole[0], rtol=1e-4, atol=1e-6)


def test_lamb_scales_the_step_of_a_matrix_to_its_norm(apex):
    module, optimizer = make("apex_lamb")
    before = module[0].weight.detach().clone()
    run(module, optimizer, [0])
    moved = float((module[0].weight.detach() - before).norm())
    assert moved == pytest.approx(1e-2 * float(before.norm()), rel=1e-4)


def test_auto_takes_the_faster_adam_and_says_the_times(apex, monkeypatch):
    module, _ = make("adamw")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    chosen = choose_optimizer(module, OptimConfig(), ALONE)
    kind, why = chosen.value, chosen.why
    assert kind in ("adamw", "apex_adam")
    times = {name: float(ms) for name, ms, _ in (part.split() for part in why.split(", "))}
    assert times[kind] == min(times.values())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_without_apex_auto_is_torch(monkeypatch):
    monkeypatch.setattr(nvidia_apex, "DEVICES", ("cuda", "cpu"))
    chosen = choose_optimizer(make("adamw")[0], OptimConfig(), ALONE)
    kind, why = chosen.value, chosen.why
    assert (kind, why) == ("adamw", "apex: not installed")


def test_layer_norm_of_apex_computes_the_same_network(apex, config, fit):
    plain = RunContext(config).new_network(0)
    fused = RunContext(replace(config, model=replace(config.model, norm="apex"))).new_network(0)
    kinds = [type(m).__name__ for m in fused.modules()]
    assert "LayerNorm" not in kinds
    assert kinds.count("FusedLayerNorm") == sum(
        isinstance(m, nn.LayerNorm) for m in plain.modules()
    )
    assert list(plain.state_dict()) == list(fused.state_dict())
    images = torch.randn(2, 1, 3, 64, 64)
    assert torch.equal(plain.eval()(images).logits, fused.eval()(images).logits)


def test_a_run_with_apex_trains_like_one_without(apex, config, fit, losses):
    optim = replace(config.optim, kind="apex_adam")
    model = replace(config.model, norm="apex")
    with_apex, _ = fit(replace(config, name="apex", optim=optim, model=model))
    without, _ = fit(replace(config, name="torch"))
    left, right = losses(with_apex), losses(without)
    assert left.keys() == right.keys()
    for key, value in right.items():
        if key[0] == "teacher":
            assert float.fromhex(left[key]) == pytest.approx(float.fromhex(value), rel=1e-3)


@pytest.mark.fault("F38")
@pytest.mark.parametrize(
    "option", ["--optim.kind apex_adam", "--optim.kind apex_lamb", "--model.norm apex"]
)
def test_asking_for_apex_without_it_says_how_to_install_it(scenes, tmp_path, capsys, option):
    arguments = ["--preset", "debug", "--out", str(tmp_path), "--data.root", str(scenes)]
    arguments += ["--synthetic.train", "0", "--synthetic.val", "0"]
    assert train.main([*arguments, *option.split()]) == 2
    said = capsys.readouterr().err
    assert option in said
    assert "not installed" in said
    assert "git checkout 6424da3b" in said
    assert "APEX_CUDA_EXT=1" in said


def test_apex_does_not_serve_a_cpu(apex, monkeypatch):
    monkeypatch.setattr(nvidia_apex, "DEVICES", ("cuda",))
    with pytest.raises(ConfigError, match="computes on cuda only, this run on cpu"):
        make("apex_adam")


@pytest.mark.fault("F38")
def test_apex_that_cannot_be_built_is_one_message(apex, monkeypatch):
    module = importlib.import_module("apex.optimizers")

    def refuse(*_, **__):
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")

    monkeypatch.setattr(module, "FusedAdam", refuse)
    with pytest.raises(ConfigError, match=r"requires cuda extensions.*--optim.kind adamw"):
        make("apex_adam")


def test_doctor_says_what_apex_is_used_for(apex):
    finding = doctor._apex()
    assert finding.state == "found"
    assert "--model.norm apex" in finding.consequence
