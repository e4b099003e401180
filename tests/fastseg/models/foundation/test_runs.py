"""Runs on disk: what is saved, resuming, scoring, and folders that are not what they were."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastseg import evaluate
from fastseg.config.presets.registry import get_preset
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.trainer import Stopped, Trainer
from fastseg.evaluation.validation import Validation
from tests.support.tiny_dinov2 import write_backbone


def fit(config):
    """Train; the folder of the run, and whether it is finished."""
    with RunFolder(config) as folder:
        trainer = Trainer(RunContext(folder.config), folder, Validation)
        try:
            trainer.fit()
        except Stopped:
            return folder.path, False
    return folder.path, True


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def config(backbones, scenes, tmp_path_factory):
    """Two stages of two steps each in bf16, averaged; a subset for each sample in the second."""
    base = get_preset("debug")
    stages = {name: replace(stage, steps=2) for name, stage in base.stages.items()}
    stages["student"] = replace(stages["student"], modalities_per="sample")
    model = replace(
        base.model, backbone="dinov2", foundation=backbones["dinov2"][1], embed_dim=16,
        pyramid_width=16, adapter_rank=2, dropout=0.1,
    )  # fmt: skip
    return replace(
        base,
        out=tmp_path_factory.mktemp("runs"),
        name="whole",
        precision="bf16",
        ema=0.9,
        data=replace(base.data, root=scenes, workers=0, batch_size=2),
        synthetic=replace(base.synthetic, train=0, val=0),
        evaluation=replace(base.evaluation, every=100, samples=1),
        model=model,
        stages=stages,
        log_every=1,
        save_every=1,
    )


@pytest.fixture(scope="module")
def trained(config, backbones):
    """A finished run; the files of its backbone are what they were."""
    folder = backbones["dinov2"][1]
    before = digests(folder)
    path, finished = fit(config)
    assert finished
    assert digests(folder) == before
    return path


def test_files_hold_what_learns_alone(trained, config, backbones):
    file = trained / "student.safetensors"
    names = set(load_file(file))
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}
    assert all(".lora_" in name for name in names if name.startswith("encoder.blocks"))
    with safe_open(file, "pt") as opened:
        kept = json.loads(opened.metadata()["constants"])
    network = RunContext(replace(config, device="cpu")).load_network(file, "student")
    assert kept == network.constants_of_files()
    # the backbone is that of the folder to the last bit
    own = network.encoder.blocks[1].block.mlp.fc1.weight
    assert torch.equal(own, backbones["dinov2"][0].encoder.layer[1].mlp.fc1.weight)
    moved = [p for name, p in network.named_parameters() if ".lora_B." in name]
    assert all(p.any() for p in moved)


def test_an_interrupted_run_equals_one_that_is_not(trained, config):
    other = replace(config, name="broken", stop_after=1)
    sessions = 0
    while not (found := fit(other))[1]:
        sessions += 1
    assert sessions >= 2
    for name in ("teacher", "student"):
        one, two = (load_file(p / f"{name}.safetensors") for p in (trained, found[0]))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_state_does_not_go_on_with_another_backbone(config, backbones, tmp_path):
    stopped = replace(config, name="stopped", stop_after=1)
    assert not fit(stopped)[1]
    write_backbone(tmp_path / "other", seed=1)
    with pytest.raises(Exception, match="other files than those at hand"):
        fit(replace(stopped, model=replace(config.model, foundation=tmp_path / "other")))
    # a copy elsewhere serves
    shutil.copytree(backbones["dinov2"][1], tmp_path / "copy")
    fit(replace(stopped, model=replace(config.model, foundation=tmp_path / "copy")))


def test_weights_are_scored_with_their_backbone_alone(trained, backbones, tmp_path, capsys):
    words = ["--checkpoint", str(trained / "student.safetensors"), "--device", "cpu"]
    shutil.copytree(backbones["dinov2"][1], tmp_path / "copy")
    words = [*words, "--out", str(tmp_path / "scores.csv"), "--model.foundation"]
    assert evaluate.main([*words, str(tmp_path / "copy")]) == 0
    assert "RDEL" in capsys.readouterr().out
    write_backbone(tmp_path / "other", seed=1)
    assert evaluate.main([*words, str(tmp_path / "other")]) == 2
    assert "--model.foundation:" in capsys.readouterr().err
    assert evaluate.main([*words, str(tmp_path / "gone")]) == 2
    assert "does not exist: give a folder with config.json" in capsys.readouterr().err
