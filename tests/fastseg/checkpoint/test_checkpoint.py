import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fastseg.checkpoint import state as states_module
from fastseg.checkpoint import weights as checkpoint
from fastseg.checkpoint.intact import file_digest
from fastseg.checkpoint.state import TrainingStates
from fastseg.checkpoint.state_files import load_state
from fastseg.checkpoint.weights import Identity
from fastseg.config.sections import OptimConfig
from fastseg.engine.optim.optimizer import build_optimizer, guarded_step, set_learning_rate
from fastseg.errors import CheckpointError

IDENTITY = Identity("teacher", "deliver", ("Road", "Sky"), ("img", "depth"), "mit_b0", 64)


def trained(steps, module=None, optimizer=None, start=0):
    if module is None:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        optimizer = build_optimizer(module, OptimConfig())
        set_learning_rate(optimizer, 1e-2)
    for step in range(start, steps):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        module(x).square().sum().backward()
        guarded_step(optimizer, 0.0)
    return module, optimizer


def facts(step, stage="a"):
    """What a session says of its state."""
    fixed = {"fingerprint": "f", "skipped_in_row": 0.0, "loss_scale": None, "parallel": "single"}
    return {"stage": stage, "step": step, "processes": 1, "optimizer": "adamw", **fixed}


def saved(folder, *steps, keep=2, stage="a"):
    """States of a small network, written by a process of their own."""
    states = TrainingStates(folder)
    for step in steps:
        states.save(*trained(1), facts(step, stage), keep=keep)
    return states


def untrained():
    return trained(0)[0]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(left, right):
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_resumed_training_is_bitwise_the_same(tmp_path):
    whole, _ = trained(10)
    half, optimizer = trained(5)
    states = TrainingStates(tmp_path)
    states.save(half, optimizer, facts(5), keep=2)
    path, state = states.newest("a", untrained)
    other, other_optimizer = trained(0)
    set_learning_rate(other_optimizer, 1e-2)
    load_state(path, other, other_optimizer)
    resumed, _ = trained(10, other, other_optimizer, start=state["step"])
    assert same(resumed, whole)


def test_only_the_newest_states_are_kept(tmp_path):
    saved(tmp_path, 5, 10, 15)
    assert names(tmp_path) == ["step-00000010", "step-00000015"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_state_just_written_outlives_damaged_and_foreign_ones(tmp_path, keep):
    saved(tmp_path, 30, 40, 50, keep=9)
    saved(tmp_path / "other", 60, 70, stage="teacher")
    for path in (tmp_path / "other").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "other").rmdir()
    for step in (30, 50):
        (tmp_path / f"step-000000{step}" / "network.safetensors").write_bytes(b"")
    saved(tmp_path, 41, keep=keep)
    assert names(tmp_path) == ["step-00000040", "step-00000041"][-keep:]
    assert TrainingStates(tmp_path).newest("a", untrained)[1]["step"] == 41


def test_kept_states_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    saved(tmp_path, 5, 10)
    states, read = TrainingStates(tmp_path), []
    real = states_module.examine
    monkeypatch.setattr(states_module, "examine", lambda path: read.append(path.name) or real(path))
    for step in (15, 20, 25):
        states.save(*trained(1), facts(step), keep=3)
    assert sorted(read) == ["step-00000005", "step-00000010"]
    (tmp_path / "step-00000020" / "state.json").write_text("{}")
    states.save(*trained(1), facts(30), keep=3)
    assert names(tmp_path) == ["step-00000015", "step-00000025", "step-00000030"]


def test_a_linked_folder_stays_a_link(tmp_path):
    disk, link = tmp_path / "disk", tmp_path / "checkpoints"
    disk.mkdir()
    link.symlink_to(disk)
    states = saved(link, 5, 10, keep=1)
    assert names(disk) == ["step-00000010"]
    (disk / "step-00000011.partial").mkdir()
    states.remove()
    assert link.is_symlink()
    assert names(disk) == []


def test_what_cannot_be_removed_is_reported(tmp_path, capsys, monkeypatch):
    saved(tmp_path, 5)

    def busy(path, *_, **__):
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    saved(tmp_path, 10, keep=1)
    assert names(tmp_path) == ["step-00000005", "step-00000010"]
    assert "step-00000005: Device or resource busy; remove it" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["flip", "truncate", "remove", "no manifest"])
@pytest.mark.fault("F2", "F4")
def test_a_damaged_state_is_passed_over(tmp_path, capsys, fault):
    states = saved(tmp_path, 5, 10)
    victim = tmp_path / "step-00000010" / "network.safetensors"
    data = bytearray(victim.read_bytes())
    if fault == "flip":
        data[-3] ^= 1
        victim.write_bytes(data)
    elif fault == "truncate":
        victim.write_bytes(data[:-8])
    elif fault == "remove":
        victim.unlink()
    else:
        (victim.parent / "MANIFEST.json").unlink()
    path, state = states.newest("a", untrained)
    assert state["step"] == 5
    assert path.name == "step-00000005"
    assert "step-00000010 is passed over" in capsys.readouterr().err


def rewrite(path, name, edit):
    """Change a file of a state as its writer would have, with a manifest that fits."""
    edit(path / name)
    manifest = {p.name: file_digest(p) for p in path.iterdir() if p.stem != "MANIFEST"}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


def of_json(**changes):
    def edit(file):
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))

    return edit


def of_tensors(edit):
    return lambda file: save_file(edit(load_file(file)), file)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("state.json", of_json(fingerprint="absent"), "lacks the field fingerprint"),
        ("state.json", of_json(skipped_in_row="no"), "has skipped_in_row 'no'"),
        ("state.json", of_json(step=7), "is that of step 7"),
        ("state.json", of_json(loss_scale={"scale": 1.0}), "has loss_scale"),
        ("state.json", of_json(meter=[[0, 1, 8]], values=["loss"]), "has sums of the log"),
        ("state.json", of_json(meter=[[0, 1, 8, 0, 0, "x"]], values=["loss"]), "sums of the log"),
        ("state.json", of_json(meter={"loss": 1}), "has sums of the log"),
        ("state.json", of_json(modalities=["img"]), "has sums of the log"),
        ("state.json", lambda file: file.write_text("[]"), "is no object"),
        ("optimizer.safetensors", of_tensors(lambda t: {}), "is empty"),
        (
            "optimizer.safetensors",
            of_tensors(lambda t: {k: v for k, v in t.items() if k != "1.exp_avg"}),
            "has exp_avg of other parameters",
        ),
        (
            "optimizer.safetensors",
            of_tensors(lambda t: t | {"1.exp_avg": torch.zeros(7)}),
            "has exp_avg of another shape",
        ),
        (
            "network.safetensors",
            of_tensors(lambda t: {k: v for k, v in t.items() if k != "0.bias"}),
            "1 missing: 0.bias",
        ),
        (
            "network.safetensors",
            of_tensors(lambda t: t | {"0.bias": torch.zeros(8, dtype=torch.int64)}),
            r"0.bias int64 [8] for float32 [8]",
        ),
    ],
)
def test_a_state_that_is_whole_but_wrong_is_passed_over(tmp_path, capsys, name, edit, message):
    saved(tmp_path, 5, 10)
    rewrite(tmp_path / "step-00000010", name, edit)
    states = TrainingStates(tmp_path)
    assert states.newest("a", untrained)[1]["step"] == 5
    assert message in capsys.readouterr().err
    states.save(*trained(1), facts(6), keep=2)
    assert names(tmp_path) == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"state.json": 3}', "\xff"])
def test_a_manifest_that_is_none_and_a_start_at_zero_are_said(tmp_path, capsys, manifest):
    saved(tmp_path, 5)
    (tmp_path / "step-00000005" / "MANIFEST.json").write_text(manifest, encoding="latin-1")
    assert TrainingStates(tmp_path).newest("a", untrained) is None
    said = capsys.readouterr().err
    assert "step-00000005 is passed over" in said
    assert "none of the 1 states of the stage a" in said
    assert "starts again at step 0" in said


@pytest.mark.fault("F1", "F4")
def test_an_unfinished_save_is_not_a_state(tmp_path):
    (tmp_path / "step-00000007.partial").mkdir()
    assert TrainingStates(tmp_path).newest("a", untrained) is None


def test_states_of_another_stage_are_not_taken(tmp_path, capsys):
    assert saved(tmp_path, 5, stage="teacher").newest("student", untrained) is None
    assert capsys.readouterr().err == ""


def test_weights_round_trip(tmp_path):
    module, _ = trained(3)
    path = tmp_path / "runs" / "teacher.safetensors"
    checkpoint.save_weights(path, module, IDENTITY, {"stage": "teacher", "steps": 3})
    other, _ = trained(0)
    assert not same(module, other)
    assert checkpoint.load_weights(path, other, IDENTITY)
    assert same(module, other)
    assert checkpoint.read_identity(path) == (IDENTITY, {"stage": "teacher", "steps": 3})
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.fault("F22")
def test_weights_of_other_data_are_refused_with_every_difference(tmp_path):
    module, _ = trained(0)
    path = tmp_path / "student.safetensors"
    checkpoint.save_weights(path, module, IDENTITY, {})
    other = Identity("student", "muses", ("road",), ("img", "depth"), "mit_b2", 64)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_weights(path, module, other)
    text = str(error.value)
    assert "dataset: deliver in the file, muses wanted" in text
    assert "classes: 2 (Road Sky) in the file, 1 (road) wanted" in text
    assert "backbone: mit_b0" in text
    assert "modalities" not in text.split("\nGive")[0]


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match="no weights at"):
        checkpoint.read_identity(tmp_path / "none.safetensors")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not a tensor file")
    with pytest.raises(CheckpointError, match="not a fastseg weights file"):
        checkpoint.read_identity(garbage)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="not a fastseg weights file"):
        checkpoint.read_identity(foreign)


@pytest.mark.fault("F32")
def test_a_pickle_is_never_run(tmp_path):
    marker = tmp_path / "ran"

    class Exploit:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    path = tmp_path / "teacher.safetensors"
    path.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(CheckpointError):
        checkpoint.read_identity(path)
    assert not marker.exists()


def test_state_is_json_and_tensors_only(tmp_path):
    path = TrainingStates(tmp_path).save(*trained(1), facts(1), keep=1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text())["step"] == 1


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "teacher.safetensors"
    checkpoint.save_weights(path, trained(2)[0], IDENTITY, {"stage": "teacher", "steps": 2})
    return path


def edited(path, edit, **metadata):
    """Replace the tensors of a weights file and, as given, its metadata; None drops one."""
    with safe_open(path, framework="pt") as file:
        metadata = {k: v for k, v in (file.metadata() | metadata).items() if v is not None}
    save_file(edit(load_file(path)), path, metadata)


@pytest.mark.fault("F2")
def test_a_flipped_bit_in_weights_is_found(weights):
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    module = untrained()
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors is damaged"):
        checkpoint.load_weights(weights, module, IDENTITY)
    assert same(module, untrained())


def test_weights_of_an_earlier_version_load_without_a_checksum(weights):
    edited(weights, dict, sha256=None)
    module = untrained()
    assert not checkpoint.load_weights(weights, module, IDENTITY)
    assert same(module, trained(2)[0])


@pytest.mark.fault("F23")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t | {"0.bias": t["0.bias"] * torch.nan}, "1 not finite: 0.bias"),
        (lambda t: t | {"0.bias": t["0.bias"].long()}, "0.bias int64 .8. for float32 .8."),
        (lambda t: t | {"0.bias": torch.ones(7)}, "0.bias float32 .7. for float32 .8."),
        (lambda t: t | {"more": torch.ones(7)}, "1 unexpected: more"),
        (lambda t: {k: v for k, v in t.items() if k != "0.bias"}, "1 missing: 0.bias"),
    ],
    ids=["nan", "integers", "reshaped", "extra", "missing"],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(weights, edit, message):
    edited(weights, edit, sha256=None)
    module = untrained()
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_weights(weights, module, IDENTITY)
    assert same(module, untrained())


@pytest.mark.fault("F22")
def test_weights_of_another_role_are_refused(weights):
    with pytest.raises(CheckpointError, match="network: teacher in the file, student wanted"):
        checkpoint.load_weights(weights, untrained(), IDENTITY, role="student")


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    module = untrained()
    module[0].bias.data[0] = torch.inf
    with pytest.raises(CheckpointError, match=r"the teacher has values .* finite in 0\.bias"):
        checkpoint.save_weights(tmp_path / "teacher.safetensors", module, IDENTITY, {})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"facts": "[]"},
        {"facts": "{"},
        {"facts": None},
        {"fastseg": "[]"},
        {"fastseg": json.dumps(IDENTITY.__dict__ | {"classes": "Road"})},
        {"fastseg": json.dumps(IDENTITY.__dict__ | {"embed_dim": "64"})},
        {"fastseg": json.dumps(IDENTITY.__dict__ | {"more": 1})},
    ],
)
def test_metadata_of_another_shape_are_refused(weights, metadata):
    edited(weights, dict, **metadata)
    with pytest.raises(CheckpointError, match="is not a fastseg weights file"):
        checkpoint.read_identity(weights)


@pytest.mark.fault("F22")
@pytest.mark.parametrize("facts", [{}, {"stage": 3}, {"stage": "other"}])
def test_weights_of_no_stage_of_the_run_are_refused(weights, facts):
    edited(weights, dict, facts=json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors .*stage"):
        checkpoint.stage_of(weights, ["teacher", "student"])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_the_umask_decides_who_may_read_what_is_written(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        state = TrainingStates(tmp_path).save(*trained(1), facts(1), keep=1)
        path = tmp_path / "teacher.safetensors"
        checkpoint.save_weights(path, untrained(), IDENTITY, {})
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in [path, *state.iterdir()]} == {mode}
