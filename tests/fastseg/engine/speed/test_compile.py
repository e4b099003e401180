"""Compiled blocks and heads against plain ones."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from fastseg.choice import Choice
from fastseg.cli import command
from fastseg.config.sections import SpeedConfig
from fastseg.distributed.ranks import Ranks
from fastseg.engine import step as step_module
from fastseg.engine.speed.compile import compile_regions
from fastseg.engine.warm_up import warm_up
from fastseg.models.packing import PackingRule

CPU = torch.device("cpu")
ON = SpeedConfig(compile="on")


@pytest.fixture
def compiled_step(tiny_step, monkeypatch):
    """A step whose regions are compiled; by default without generating code."""

    def make(*args, backend="aot_eager", **options):
        monkeypatch.setattr(
            step_module, "compile_regions", lambda network: compile_regions(network, backend)
        )
        return tiny_step(*args, speed=ON, **options)

    torch._dynamo.reset()
    counters.clear()
    yield make
    torch._dynamo.reset()


def train(step, random_batch, steps=range(3)):
    """Losses; gradients and statistics of the first step, before rounding has trained anything."""
    seen = []
    learn = step._learn

    def look(*args):
        grads = {name: p.grad.clone() for name, p in step.networks.main.named_parameters()}
        seen.append(grads | {name: x.clone() for name, x in step.networks.main.named_buffers()})
        return learn(*args)

    step._learn = look
    rows = [{k: float(v) for k, v in step(s, random_batch(s, 1, 32)).items()} for s in steps]
    return rows, seen[0]


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}], ids=["fp32", "short-weights"])
def test_a_compiled_step_learns_the_same(tiny_step, compiled_step, random_batch, options):
    plain, compiled = tiny_step(**options), compiled_step(**options)
    names = list(plain.networks.main.state_dict())
    rows, first = train(plain, random_batch)
    compiled_rows, compiled_first = train(compiled, random_batch)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    assert list(compiled.networks.main.state_dict()) == names
    slack = 2e-2 if options else 1e-4
    for row, wanted in zip(compiled_rows, rows, strict=True):
        assert row == pytest.approx(wanted, rel=slack)
    # a bias in front of BatchNorm has no gradient but rounding, which is that of the others
    largest = max(
        float(first[name].abs().max()) for name, _ in plain.networks.main.named_parameters()
    )
    share = 5e-2 if options else 1e-2  # compilers round bfloat16 in other places
    for name, wanted in first.items():
        atol = slack * (share * largest if "running" not in name else 1e-2)
        torch.testing.assert_close(
            compiled_first[name], wanted, rtol=slack, atol=atol, msg=lambda text, n=name: n + text
        )
    # and what was compiled for training is evaluated
    plain.networks.main.load_state_dict(compiled.networks.main.state_dict())
    images = random_batch(5, 1, 32).images
    with torch.no_grad():
        found, logits = (each.networks.main.eval()(images).logits for each in (compiled, plain))
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_every_number_of_modalities_compiles_once(compiled_step, random_batch):
    step = compiled_step("drop", backend="eager")  # what is counted happens before any backend
    counts, first = {}, {}
    for s in range(60):
        counts.setdefault(len(step.present(s, 4)), []).append(s)
    for number in sorted(counts):
        step(counts[number][0], random_batch(0, 1, 32))
        first[number] = counters["stats"]["unique_graphs"]
    assert sorted(counts) == [1, 2, 3, 4]
    # the student's four blocks and head for each number, the teacher's five once
    assert first[4] <= 5 * 4 + 5
    step.networks.main.eval()
    with torch.no_grad():
        step.networks.main(random_batch(0, 1, 32).images)
    step.networks.main.train()
    trained = counters["stats"]["unique_graphs"]
    for number in sorted(counts):
        step(counts[number][1], random_batch(1, 1, 32))
    assert counters["stats"]["unique_graphs"] == trained


def test_packed_steps_compile_once_for_a_few_numbers_of_images(compiled_step, random_batch):
    step = compiled_step("drop", per="sample", backend="eager")
    assert step.paths.packing.value == PackingRule(lengths=8)
    rule = PackingRule(lengths=2)
    step.paths = replace(step.paths, packing=Choice(rule, "a short test"))
    numbers = rule.numbers(4, 2)
    assert numbers == [4, 8]
    warm_up(step, 4, 2, 32, Ranks(CPU))
    compiled = counters["stats"]["unique_graphs"]
    # the student's four blocks for each number, its head and the teacher's five once
    assert compiled <= 4 * len(numbers) + 6
    assert {step.draw(s, 4, 2).size for s in range(6)} == set(numbers)
    for s in range(6):
        step(s, random_batch(s, 2, 32))
    assert counters["stats"]["unique_graphs"] == compiled
    assert not counters["graph_break"]


def no_compiler(*_):
    raise RuntimeError("no C++ compiler\nfurther advice")


def left_open(train):
    """As where compiling was the choice of the engine and not of its user."""
    train.config = replace(train.config, speed=SpeedConfig())
    return train


def test_what_cannot_be_compiled_runs_as_written(tiny_step, compiled_step, random_batch):
    plain, broken = tiny_step(), left_open(compiled_step(backend=no_compiler))
    _, said = warm_up(broken, 4, 1, 32, Ranks(CPU))
    assert len(said) == 1
    assert said[0].startswith("compile off (torch.compile failed: ")
    assert "no C++ compiler" in said[0]
    assert "further advice" not in said[0]
    assert not broken.paths.compile.value
    for s in range(2):
        batch = random_batch(s, 1, 32)
        assert broken(s, batch) == plain(s, batch)


@pytest.mark.parametrize("case", ["asked for", "of several processes"])
def test_a_failure_to_compile_says_how_to_go_on(compiled_step, case):
    train, ranks = compiled_step(backend=no_compiler), Ranks(CPU)
    if case == "of several processes":
        train, ranks = left_open(train), Ranks(CPU, rank=0, world=2, store=None)
    before = [x.clone() for x in train.buffers]
    with pytest.raises(RuntimeError) as caught:
        warm_up(train, 4, 1, 32, ranks)
    assert all(map(torch.equal, train.buffers, before))
    code, message = command.explain(caught.value)
    assert code == 2
    assert "no C++ compiler" in message
    assert "--speed.compile off" in message
    assert command.explain(RuntimeError("another one")) == (1, None)
