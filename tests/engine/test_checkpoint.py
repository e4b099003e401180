import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastseg import checkpoint
from fastseg.checkpoint import Identity
from fastseg.errors import CheckpointError
from fastseg.optim import OptimConfig, build_optimizer, guarded_step, set_learning_rate

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


def same(left, right):
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_resumed_training_is_bitwise_the_same(tmp_path):
    whole, _ = trained(10)
    half, optimizer = trained(5)
    checkpoint.save_state(tmp_path, half, optimizer, {"stage": "a", "step": 5}, keep=2)
    path, state = checkpoint.newest_state(tmp_path, "a")
    other, other_optimizer = trained(0)
    set_learning_rate(other_optimizer, 1e-2)
    checkpoint.load_state(path, other, other_optimizer)
    resumed, _ = trained(10, other, other_optimizer, start=state["step"])
    assert same(resumed, whole)


def test_only_the_newest_states_are_kept(tmp_path):
    module, optimizer = trained(1)
    for step in (5, 10, 15):
        checkpoint.save_state(tmp_path, module, optimizer, {"stage": "a", "step": step}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]


@pytest.mark.parametrize("fault", ["flip", "truncate", "remove", "no manifest"])
def test_a_damaged_state_is_passed_over(tmp_path, capsys, fault):
    module, optimizer = trained(1)
    for step in (5, 10):
        checkpoint.save_state(tmp_path, module, optimizer, {"stage": "a", "step": step}, keep=2)
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
    path, state = checkpoint.newest_state(tmp_path, "a")
    assert state["step"] == 5
    assert path.name == "step-00000005"
    assert "step-00000010 is passed over" in capsys.readouterr().out


def test_an_unfinished_save_is_not_a_state(tmp_path):
    (tmp_path / "step-00000007.partial").mkdir()
    assert checkpoint.newest_state(tmp_path, "a") is None


def test_states_of_another_stage_are_not_taken(tmp_path):
    module, optimizer = trained(1)
    checkpoint.save_state(tmp_path, module, optimizer, {"stage": "teacher", "step": 5}, keep=2)
    assert checkpoint.newest_state(tmp_path, "student") is None


def test_weights_round_trip(tmp_path):
    module, _ = trained(3)
    path = tmp_path / "runs" / "teacher.safetensors"
    checkpoint.save_weights(path, module, IDENTITY, {"stage": "teacher", "steps": 3})
    other, _ = trained(0)
    assert not same(module, other)
    facts = checkpoint.load_weights(path, other, IDENTITY)
    assert same(module, other)
    assert facts == {"stage": "teacher", "steps": 3}
    assert checkpoint.read_identity(path)[0] == IDENTITY
    assert [p.name for p in path.parent.iterdir()] == [path.name]


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
    module, optimizer = trained(1)
    path = checkpoint.save_state(tmp_path, module, optimizer, {"stage": "a", "step": 1}, keep=1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text())["step"] == 1
