"""Runs, weights, configs and packed caches of version 0.1.0 are read, continued and scored."""

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fastseg import evaluate, train
from fastseg.checkpoint.weights import read_identity, save_weights
from fastseg.config.serialise import read_config
from fastseg.engine.context import RunContext
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.pipelines import build_loader

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1.0.tar.xz"


@pytest.fixture
def old(tmp_path):
    """The folder of what version 0.1.0 has written."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def expected(old):
    found = json.loads((old / "expected.json").read_text())
    return found["rows"], list(csv.DictReader(io.StringIO(found["results"])))


def test_a_config_of_before_methods_had_names_is_read(old):
    config = read_config(old / "runs" / "debug" / "config.json")
    assert (config.method, config.model.embed_dim, config.ema) == ("robustseg", 8, 0.5)
    wanted = RobustSegWeights(ohem=1.0, logit=50.0, hpdm=1.0, rrm=0.01)
    assert config.stages["student"].losses == wanted
    assert config.stages["student"].start == "teacher"


def test_a_run_continues_at_its_step_and_ends_with_the_same_scores(old, capsys):
    run = old / "runs" / "debug"
    arguments = ["--config", str(run / "config.json"), "--out", str(old / "runs")]
    assert train.main([*arguments, "--data.root", str(old / "data")]) == 0
    said = capsys.readouterr().err
    assert "continued at step 3" in said
    assert "passed over" not in said
    rows, results = expected(old)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    found = [row for row in found if row["stage"] == "student"]
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for row, wanted in zip(found, rows, strict=True):
        for term in ("ohem", "logit", "hpdm", "rrm", "loss", "grad_norm"):
            assert row[term] == pytest.approx(wanted[term], rel=1e-3)
    with (run / "results.csv").open() as file:
        scored = list(csv.DictReader(file))
    assert [list(row) for row in scored] == [list(row) for row in results]
    for row, wanted in zip(scored, results, strict=True):
        assert (row["model"], row["subset"]) == (wanted["model"], wanted["subset"])
        assert float(row["miou_all"]) == pytest.approx(float(wanted["miou_all"]), abs=0.05)


def test_another_teacher_is_refused_though_the_state_names_it_in_the_old_way(old, capsys):
    run = old / "runs" / "debug"
    state = next(run.glob("checkpoints/step-*/state.json"))
    digest = json.loads(state.read_text())["teacher"]
    assert len(digest) == 64
    path = run / "teacher.safetensors"
    config = read_config(run / "config.json")
    config = replace(config, data=replace(config.data, root=old / "data"))
    network = RunContext(config).new_network(0)
    network.load_state_dict({name: x + 0.001 for name, x in load_file(path).items()}, strict=False)
    save_weights(path, network, *read_identity(path))
    arguments = ["--config", str(run / "config.json"), "--out", str(old / "runs")]
    assert train.main([*arguments, "--data.root", str(old / "data")]) == 2
    assert "is not the teacher that" in capsys.readouterr().err


def test_weights_are_scored(old, capsys):
    run = old / "runs" / "debug"
    assert evaluate.main(["--checkpoint", str(run), "--data.root", str(old / "data")]) == 0
    (line,) = capsys.readouterr().out.splitlines()[1:]
    _, results = expected(old)
    wanted = [float(row["miou_all"]) for row in results if row["model"] == "teacher"]
    assert [float(cell) for cell in line.split()[1:]] == pytest.approx(wanted, abs=0.05)


def test_a_packed_cache_is_used(old):
    config = read_config(old / "runs" / "debug" / "config.json").data
    config = replace(config, root=old / "data", loader="torch", packed_auto=True, cache=False)
    plain = replace(config, packed_auto=False)
    for is_training in (True, False):
        loaders = [build_loader(c, train=is_training) for c in (config, plain)]
        assert "packed in" in loaders[0].reason
        assert "packed in" not in loaders[1].reason
        for left, right in zip(*(loader.batches(0, 2) for loader in loaders), strict=True):
            assert left.sample_ids == right.sample_ids
            assert (left.images == right.images).all()
            assert (left.labels == right.labels).all()
        for loader in loaders:
            loader.close()
