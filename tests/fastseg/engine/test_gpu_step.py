"""What a GPU alone can show: whole steps as CUDA graphs."""

from dataclasses import replace

import pytest
import torch

from fastseg.config.sections import SpeedConfig
from fastseg.engine import stage_setup
from fastseg.engine.speed.cuda_graphs import StepGraphs
from fastseg.methods import robustseg
from fastseg.methods.robustseg import RobustSegWeights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ALL_TERMS = RobustSegWeights(ohem=1, logit=50, hpdm=1, rrm=0.01)
PLAIN = SpeedConfig(compile="off", graphs="off", attention="torch")
GRAPHS = replace(PLAIN, graphs="on")


def run(train, steps, batches):
    return [{k: float(v) for k, v in train(s, batches[s]).items()} for s in steps]


def state_of(train):
    """Every tensor that a step changes."""
    moments = [x for slots in train.optimizer.state.values() for x in slots.values()]
    scale = [] if train.scale is None else [train.scale.scale, train.scale.good_steps]
    return [
        *train.networks.main.parameters(),
        *train.buffers,
        *moments,
        *scale,
        train.skipped_in_row,
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("modalities", ["drop", "zero"])
def test_a_graph_for_each_number_of_modalities_learns_the_same(
    tiny_step, random_batch, modalities, precision
):
    # no dropout: as on a CPU, without noise where nothing is drawn alike
    usual, replayed = (
        tiny_step(
            modalities, losses=ALL_TERMS, precision=precision, speed=speed, dropout=0.0,
            device="cuda",
        )
        for speed in (PLAIN, GRAPHS)
    )  # fmt: skip
    # of losses, of the norm of the gradients, and of what is learnt: a zeroed image has constant
    # tokens, whose normalisation makes a thousand times as much of rounding
    slack, of_norm, of_weights = (1e-3, 1e-2, 0.3) if precision == "fp32" else (5e-2, 0.3, 0.6)
    skipped = 0
    for step in range(40):
        with torch.no_grad():
            # from the same start each time: rounding grows from step to step, and atomics round
            # in another order in every run
            for mine, wanted in zip(state_of(replayed), state_of(usual), strict=True):
                mine.copy_(wanted)
            if usual.scale is not None and step == 0:
                usual.scale.scale.fill_(4.0)
                replayed.scale.scale.fill_(4.0)
        before = torch.cat([p.detach().flatten() for p in usual.networks.main.parameters()])
        batch = random_batch(step, device="cuda")
        (wanted,), (row,) = (run(train, [step], {step: batch}) for train in (usual, replayed))
        # a norm of fp16 gradients that is not finite stays a step that is skipped
        norm, wanted_norm = row.pop("grad_norm"), wanted.pop("grad_norm")
        assert norm == pytest.approx(wanted_norm, rel=of_norm, nan_ok=True), step
        assert row == pytest.approx(wanted, rel=slack, abs=slack), step
        skipped += int(row["skipped"])
        learnt, mine = (
            torch.cat([p.detach().flatten() for p in train.networks.main.parameters()]) - before
            for train in (usual, replayed)
        )
        # where a gradient is nearly zero Adam's first steps are its sign, which rounding decides
        assert float((mine - learnt).norm()) <= of_weights * float(learnt.norm()), step
    assert skipped < 30
    graphs = replayed._graphs
    assert isinstance(graphs, StepGraphs)
    assert graphs.reason is None
    assert graphs.sizes == ([1, 2, 3, 4] if modalities == "drop" else [4])


def test_a_replay_draws_other_dropout_masks_in_every_step(tiny_step, random_batch, monkeypatch):
    # nothing is learnt, so nothing but the masks can change the loss
    monkeypatch.setattr(stage_setup, "learning_rate", lambda *_: 0.0)
    batch, runs = random_batch(device="cuda"), []
    for _ in range(2):
        train = tiny_step(speed=GRAPHS, dropout=0.5, device="cuda")
        runs.append([row["loss"] for row in run(train, range(8), [batch] * 8)])
        assert train._graphs.sizes == [4]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert len({round(loss, 4) for loss in runs[0]}) == 8


def test_after_a_capture_that_breaks_off_everything_works_as_before(
    tiny_step, random_batch, monkeypatch
):
    batch, losses = random_batch(device="cuda"), robustseg.loss_terms

    def waiting(*args):
        values = losses(*args)
        if torch.cuda.is_current_stream_capturing():
            float(values["ohem"].detach())
        return values

    wanted = run(tiny_step(speed=PLAIN, dropout=0.5, device="cuda"), range(6), [batch] * 6)
    monkeypatch.setattr(robustseg, "loss_terms", waiting)
    stream = torch.cuda.current_stream()
    train = tiny_step(speed=GRAPHS, dropout=0.5, device="cuda")
    rows = run(train, range(6), [batch] * 6)
    assert train._graphs.reason is not None
    assert "previous error" not in train._graphs.reason  # but the error itself
    assert torch.cuda.current_stream() == stream
    # random numbers are drawn again, and the same ones
    for row, of in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(of["loss"], rel=1e-2)
    # memory that another stream has used is free again
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    x = torch.empty(1 << 24, dtype=torch.uint8, device="cuda")
    x.record_stream(torch.cuda.Stream())
    del x
    torch.cuda.synchronize()
    torch.empty(1, device="cuda")
    assert torch.cuda.memory_allocated() <= held
    # and the next stage can be captured
    monkeypatch.setattr(robustseg, "loss_terms", losses)
    train = tiny_step(speed=GRAPHS, dropout=0.5, device="cuda")
    run(train, range(5), [batch] * 5)
    assert train._graphs.reason is None
    assert train._graphs.sizes == [4]


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
    assert train._graphs.sizes == [4]
    assert rows[-1]["loss"] < rows[0]["loss"] * 1.5
