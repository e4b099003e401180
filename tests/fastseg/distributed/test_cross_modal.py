"""CMNeXt on two processes, whose BatchNorms are in both branches and in the fusion."""

import json

import pytest


def losses_of(launch, scenes, out, mode, world, batch):
    words = ["-m", "fastseg.train", "--preset", "debug_dropout", "--name", "run", "--out", out]
    words += ["--model.backbone", "cmnext_nano", "--model.embed-dim", "16", "--model.dropout", "0"]
    words += ["--data.root", scenes, "--data.modalities", "img", "depth", "event"]
    words += ["--data.batch-size", batch, "--data.workers", "0", "--stages.student.steps", "2"]
    words += ["--synthetic.train", "0", "--synthetic.val", "0", "--log-every", "1"]
    words += ["--stages.student.modalities-per", "sample", "--losses.ohem-threshold", "0.999999"]
    words += ["--evaluation.pictures", "0", "--parallel.mode", mode]
    codes, _, said = launch(list(map(str, words)), world=world).finish(timeout=240)
    assert set(codes) == {0}, said
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["ohem"] for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def alone(launch, scenes, tmp_path_factory):
    """The losses of one process with the whole batch."""
    return losses_of(launch, scenes, tmp_path_factory.mktemp("alone"), "replicate", 1, 4)


@pytest.mark.slow
def test_two_processes_train_as_one(launch, scenes, tmp_path, alone):
    found = losses_of(launch, scenes, tmp_path, "fsdp_blocks", 2, 2)
    assert found == pytest.approx(alone, rel=0.02)
