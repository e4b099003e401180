"""What a GPU alone can show: whole steps as CUDA graphs."""

from dataclasses import replace

import pytest
import torch

from fastseg import step as step_module
from fastseg.fast_paths import SpeedConfig
from fastseg.graphs import StepGraphs
from fastseg.schedule import LossWeights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ALL_TERMS = LossWeights(ohem=1, logit=50, hpdm=1, rrm=0.01)
PLAIN = SpeedConfig(compile="off", graphs="off", attention="torch")
GRAPHS = replace(PLAIN, graphs="on")


def run(train, steps, batches):
    return [{k: float(v) for k, v in train(s, batches[s]).items()} for s in steps]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("modalities", ["drop", "zero"])
def test_a_graph_for_each_number_of_modalities_learns_the_same(
    tiny_step, random_batch, modalities, precision
):
    steps = range(40)
    batches = [random_batch(s, device="cuda") for s in steps]
    runs, trains = [], []
    for speed in (PLAIN, GRAPHS):
        # the masks of dropout come from other places of the generator in a graph
        train = tiny_step(
            modalities, losses=ALL_TERMS, precision=precision, speed=speed, dropout=0.0,
            device="cuda",
        )  # fmt: skip
        if train.scale is not None:
            train.scale.scale.fill_(4.0)
        runs.append(run(train, steps, batches))
        trains.append(train)
    graphs = trains[1]._graphs
    assert isinstance(graphs, StepGraphs)
    assert graphs.reason is None
    assert set(graphs._captured) == ({1, 2, 3, 4} if modalities == "drop" else {4})
    slack = 1e-3 if precision == "fp32" else 5e-2
    for row, wanted in zip(runs[1], runs[0], strict=True):
        assert row == pytest.approx(wanted, rel=slack, abs=slack)


def test_a_replay_draws_other_dropout_masks_in_every_step(tiny_step, random_batch, monkeypatch):
    # nothing is learnt, so nothing but the masks can change the loss
    monkeypatch.setattr(step_module, "learning_rate", lambda *_: 0.0)
    batch, runs = random_batch(device="cuda"), []
    for _ in range(2):
        train = tiny_step(speed=GRAPHS, dropout=0.5, device="cuda")
        runs.append([row["loss"] for row in run(train, range(8), [batch] * 8)])
        assert set(train._graphs._captured) == {4}
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 8


@pytest.mark.parametrize("speed", [PLAIN, GRAPHS], ids=["usual", "replayed"])
def test_the_host_waits_for_nothing(tiny_step, random_batch, speed):
    batch = random_batch(device="cuda")
    train = tiny_step(losses=ALL_TERMS, precision="bf16", speed=speed, device="cuda")
    for step in range(5):
        train(step, batch)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = [train(step, batch) for step in range(5, 8)]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(row["loss"].isfinite() for row in values)


def test_compiled_blocks_are_captured(tiny_step, random_batch):
    speed = replace(GRAPHS, compile="on")
    train = tiny_step(losses=ALL_TERMS, precision="bf16", speed=speed, device="cuda")
    batch = random_batch(device="cuda")
    rows = run(train, range(6), [batch] * 6)
    assert train._graphs.reason is None
    assert set(train._graphs._captured) == {4}
    assert rows[-1]["loss"] < rows[0]["loss"] * 1.5
