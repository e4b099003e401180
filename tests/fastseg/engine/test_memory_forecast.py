"""Memory by counting shapes, and the rehearsal of a step."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastseg.choice import Choice
from fastseg.config.sections import SpeedConfig
from fastseg.distributed.ranks import Ranks
from fastseg.engine import memory_forecast
from fastseg.engine import warm_up as warm_up_module
from fastseg.engine.context import RunContext
from fastseg.engine.memory_forecast import LiveBytes, count_memory, forecast_memory
from fastseg.engine.speed import choices
from fastseg.engine.stage_run import build_session
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.warm_up import warm_up
from fastseg.methods.draws import pack
from fastseg.methods.robustseg import RobustSegWeights

ALONE = Ranks(torch.device("cpu"))
WITHOUT_WAITS = RobustSegWeights(ohem=0, logit=50)


def straight():
    a = torch.empty(1000)  # 4000
    b = a + 1  # 8000
    del a
    c = b.double()  # 12000, the peak
    del b
    return c


def in_place():
    x = torch.zeros(100)
    x.add_(1)
    x.view(10, 10).t().mul_(2)
    return x


def views():
    x = torch.zeros(50, dtype=torch.int64)
    return [x[::2], x.view(5, 10), x.expand(7, 50)]


def several():
    return torch.zeros(6, 5).unbind(0), torch.ones(3).split(1), torch.ones(10, 2).max(dim=1)


@pytest.mark.parametrize(
    ("program", "peak", "left"),
    [
        (straight, 12000, 8000),
        (in_place, 400, 400),
        (views, 400, 400),
        (several, 120 + 12 + 80 + 40 + 80, 120 + 12 + 40 + 80),
    ],
)
def test_bytes_of_known_programs(program, peak, left):
    with LiveBytes() as live:
        result = program()
        assert (live.peak, live.now) == (peak, left)
        del result
        assert live.now == 0
    assert live.peak == peak


def test_what_is_there_before_is_not_counted():
    x = torch.zeros(1000)
    with LiveBytes() as live:
        y = x.view(10, 100)
        y += 1
        assert (live.peak, live.now) == (0, 0)
        (x + 1).sum()
    assert live.peak == 4000 + 4


def test_saved_tensors_live_until_the_backward_pass():
    x = torch.ones(100, requires_grad=True)
    with LiveBytes() as live:
        y = (x * 2).exp().sum()
        assert live.now == 400 + 4  # the result of exp; its input is not needed
        y.backward()
        del y
        assert live.now == 400
    assert x.grad is not None


def student_context(config, **changes):
    stage = replace(config.stages["student"], losses=WITHOUT_WAITS)
    config = replace(config, data=replace(config.data, batch_size=2), **changes)
    return RunContext(config), StageSetup(config, "student", 1, stage, steps_per_epoch=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_forecast_is_what_a_real_step_allocates(config, precision):
    context, setup = student_context(config, precision=precision)
    found = count_memory(context, setup)
    network, teacher = context.new_network(0), context.new_network(1)
    networks = StageNetworks({"student": network}, {"teacher": teacher})
    session = build_session(context, setup, networks, mode="single", kind="adamw")
    data = config.data
    draws = session.step_fn.draw(0, 4, 2, kept=[0, 1, 2, 3])
    with LiveBytes() as live:
        session.step_fn.rehearse(memory_forecast.blank_batch(ALONE.device, 4, 2, data.size), draws)
    assert found.step == pytest.approx(live.peak, rel=0.01)
    size = sum(p.numel() * 4 for p in network.parameters())
    frozen = sum(p.numel() * p.element_size() for p in teacher.parameters())
    assert found.networks == 3 * size + frozen
    assert count_memory(context, setup, shards=4).networks == 3 * size // 4 + size + frozen


def test_a_larger_batch_and_less_recomputation_need_more(config):
    context, setup = student_context(config)
    usual = count_memory(context, setup)
    again = student_context(config, model=replace(config.model, checkpointing=True))
    more = replace(context.config, data=replace(context.config.data, batch_size=4))
    larger = RunContext(more), replace(setup, config=more)
    assert count_memory(*again).step < usual.step
    # a tile of the loss has the same size for any batch
    assert 1.6 * usual.step < count_memory(*larger).step < 2.05 * usual.step


def test_the_layout_of_a_gpu_is_counted_too(config, monkeypatch):
    """What the steps of a GPU prepare has to work for shapes alone."""
    context, setup = student_context(config)
    usual = count_memory(context, setup)
    taken = lambda *_: Choice(True, "as on a GPU")  # noqa: E731
    monkeypatch.setattr(choices, "_only_on_gpu", taken)
    assert count_memory(context, setup).networks == usual.networks


def test_draws_of_shapes_alone_are_not_pinned(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)  # there is no GPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        own = {"pairing": torch.zeros(2, 4, dtype=torch.long)}
        draws = pack(torch.device("cuda"), own, modalities=4, present=range(4))
    assert draws.packed.shape == (2 + 4 + 4 + 8,)


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_a_forecast_is_a_sentence_and_never_an_error(config, monkeypatch, kind):
    context, setup = student_context(config)
    assert "GiB" in forecast_memory(context, setup)
    assert "for a step with all modalities" in forecast_memory(context, setup)

    def refuse(*_, **__):
        raise kind("an operator without shapes\nand more")

    monkeypatch.setattr(memory_forecast, "count_memory", refuse)
    said = forecast_memory(context, setup)
    assert said == f"an unknown amount of memory ({kind.__name__}: an operator without shapes)"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_rehearsal_teaches_nothing(tiny_step, random_batch, precision):
    batch = random_batch(side=32)
    rehearsed, other = (tiny_step(precision=precision) for _ in range(2))
    for train in (rehearsed, other):
        if train.scale is not None:
            train.scale.scale.fill_(4.0)
        train(0, batch)
    before = {name: x.clone() for name, x in rehearsed.networks.main.state_dict().items()}
    rehearsed.rehearse(batch, rehearsed.draw(7, 4, 2))
    now = rehearsed.networks.main.state_dict()
    assert [name for name in before if not torch.equal(before[name], now[name])] == []
    assert all(p.grad is None for p in rehearsed.networks.main.parameters())
    left, right = rehearsed(1, batch), other(1, batch)
    assert {k: float(v) for k, v in left.items()} == {k: float(v) for k, v in right.items()}
    now, wanted = rehearsed.networks.main.state_dict(), other.networks.main.state_dict()
    assert [name for name in now if not torch.equal(now[name], wanted[name])] == []


@pytest.fixture
def rehearsals(monkeypatch):
    """The numbers of modalities that are rehearsed."""
    counts = []

    def watch(train):
        monkeypatch.setattr(train, "rehearse", lambda _, draws: counts.append(len(draws.present)))
        return train

    return counts, watch


@pytest.mark.parametrize(
    ("modalities", "compile_", "wanted"),
    [
        ("drop", "on", [1, 2, 3, 4, 4]),
        ("full", "on", [4, 4]),
        ("zero", "on", [4, 4]),
        ("drop", "off", []),
    ],
)
def test_every_shape_that_is_compiled_is_rehearsed(
    tiny_step, rehearsals, modalities, compile_, wanted
):
    counts, watch = rehearsals
    train = watch(tiny_step(modalities, speed=SpeedConfig(compile=compile_)))
    seconds, said = warm_up(train, 4, 2, 64, ALONE)
    assert counts == wanted
    assert (seconds is None) == (wanted == [])
    assert said == []


def test_attention_is_chosen_by_all_processes_for_both_networks(tiny_step, rehearsals, monkeypatch):
    seen = []

    def settle(networks, images, side, dtype, before, ranks):
        seen.append((networks, images, side, dtype, before, ranks))
        return {"where": "here"}, "the best"

    _, watch = rehearsals
    train = watch(tiny_step(precision="bf16"))
    path = replace(train.paths.attention, value=True)
    train.paths = replace(train.paths, attention=path)
    monkeypatch.setattr(warm_up_module, "settle_attention", settle)
    for before in (None, {"where": "here"}):
        _, said = warm_up(train, 4, 2, 64, ALONE)
        assert said == ["attention kernels, both passes: the best"]
        networks = [train.networks.main, train.networks.frozen["teacher"]]
        assert seen.pop() == (networks, 8, 64, torch.bfloat16, before, ALONE)
