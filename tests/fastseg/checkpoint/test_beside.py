"""States that are written beside the training: what they hold, and what their faults do."""

import errno
import re
import shutil
from collections import namedtuple
from threading import Event, Timer

import pytest
import torch
from torch import nn

from fastseg.checkpoint import commit as commit_module
from fastseg.checkpoint.beside import saves_beside
from fastseg.checkpoint.contents import expected_bytes
from fastseg.checkpoint.state import TrainingStates
from fastseg.checkpoint.state_files import load_state
from fastseg.config.sections import OptimConfig
from fastseg.distributed.ranks import Ranks
from fastseg.engine.optim.optimizer import build_optimizer, guarded_step, set_learning_rate
from fastseg.errors import CheckpointError

ALONE = Ranks(torch.device("cpu"))
Disk = namedtuple("Disk", "total used free")


def fresh():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = build_optimizer(module, OptimConfig())
    set_learning_rate(optimizer, 1e-2)
    return module, optimizer


def train(module, optimizer, steps):
    for step in steps:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        module(x).square().sum().backward()
        guarded_step(optimizer, 0.0)


def facts(step):
    fixed = {"fingerprint": "f", "skipped_in_row": 0.0, "loss_scale": None, "parallel": "single"}
    return {"stage": "a", "step": step, "processes": 1, "optimizer": "adamw", **fixed}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Gate:
    """Holds the writer of a state at its first file until it is opened."""

    def __init__(self, monkeypatch):
        self.reached, self.open = Event(), Event()
        real = commit_module.write_tensors

        def held(tensors, path, *more):
            self.reached.set()
            assert self.open.wait(20)
            real(tensors, path, *more)

        monkeypatch.setattr(commit_module, "write_tensors", held)


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open.set()


@pytest.fixture
def broken(monkeypatch):
    """A disk that is full at the first file."""

    def full(tensors, path, *more):
        path.write_bytes(b"a part of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def start():
        monkeypatch.setattr(commit_module, "write_tensors", full)

    return start


def test_what_is_written_is_what_was_there_at_the_save(tmp_path, gate):
    """Five more steps are trained before the first byte is written."""
    whole = fresh()
    train(*whole, range(10))
    module, optimizer = fresh()
    train(module, optimizer, range(5))
    states = TrainingStates(tmp_path)
    states.save(module, optimizer, facts(5), keep=1, beside=True)
    assert gate.reached.wait(20)
    train(module, optimizer, range(5, 10))
    states.check()  # nothing is wrong, and nothing waits
    gate.open.set()
    states.wait()
    path, state = TrainingStates(tmp_path).newest("a", lambda: fresh()[0])
    resumed = fresh()
    load_state(path, *resumed)
    train(*resumed, range(state["step"], 10))
    wanted = whole[0].state_dict()
    assert all(torch.equal(wanted[key], value) for key, value in resumed[0].state_dict().items())


def test_one_at_a_time_and_nothing_is_removed_before_the_next_is_there(tmp_path, gate, capsys):
    module, optimizer = fresh()
    train(module, optimizer, range(1))
    states = TrainingStates(tmp_path)
    gate.open.set()
    states.save(module, optimizer, facts(1), keep=1)
    gate.open.clear()
    gate.reached.clear()
    states.save(module, optimizer, facts(2), keep=1, beside=True)
    assert gate.reached.wait(20)
    assert names(tmp_path) == ["step-00000001", "step-00000002.partial"]
    seen = []
    Timer(0.3, lambda: (seen.extend(names(tmp_path)), gate.open.set())).start()
    states.save(module, optimizer, facts(3), keep=1, beside=True)
    assert seen == ["step-00000001", "step-00000002.partial"]
    states.wait()
    assert names(tmp_path) == ["step-00000003"]
    said = capsys.readouterr().err
    assert re.search(r"a: step 3 waited \d+\.\d s for", said)
    assert "raise --save-every" in said


def test_the_memory_of_copies_is_used_again(tmp_path):
    module, optimizer = fresh()
    train(module, optimizer, range(1))
    states, places = TrainingStates(tmp_path), []
    for step in (1, 2):
        states.save(module, optimizer, facts(step), keep=1, beside=True)
        states.wait()
        places.append({key: x.data_ptr() for key, x in states._staging._buffers.items()})
    assert len(places[0]) == 9 + 6 * 3
    assert places[0] == places[1]


@pytest.mark.parametrize("then", ["check", "wait", "save"])
@pytest.mark.fault("F20")
def test_an_error_comes_back_at_the_next_call_and_once(tmp_path, broken, then):
    module, optimizer = fresh()
    train(module, optimizer, range(1))
    states = TrainingStates(tmp_path)
    states.save(module, optimizer, facts(1), keep=1)
    broken()
    states.save(module, optimizer, facts(2), keep=1, beside=True)
    states._beside._thread.join()
    calls = {
        "check": states.check,
        "wait": states.wait,
        "save": lambda: states.save(module, optimizer, facts(3), keep=1, beside=True),
    }
    with pytest.raises(OSError, match=r"step-00000002\.partial") as error:
        calls[then]()
    assert error.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step-00000001"]
    states.check()


def test_one_that_leaves_with_an_error_says_the_second_one(tmp_path, broken, capsys):
    module, optimizer = fresh()
    states = TrainingStates(tmp_path)
    broken()
    states.save(module, optimizer, facts(2), keep=1, beside=True)
    states.leave(ALONE)
    assert "warning: the last training state could not be written" in capsys.readouterr().err


@pytest.mark.fault("F20")
def test_a_disk_without_room_is_named_with_both_numbers(tmp_path, monkeypatch):
    module, optimizer = fresh()
    train(module, optimizer, range(1))
    states = TrainingStates(tmp_path)
    states.save(module, optimizer, facts(1), keep=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, 123_456))
    with pytest.raises(CheckpointError, match=r"it needs 1\.0 MB and 123\.5 kB are free; make roo"):
        states.save(module, optimizer, facts(2), keep=1)
    assert names(tmp_path) == ["step-00000001"]


def test_the_disk_is_looked_at_before_the_first_step(tmp_path, monkeypatch, capsys):
    module, optimizer = fresh()
    train(module, optimizer, range(1))
    states = TrainingStates(tmp_path / "not" / "there")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, 2_500_000_000))
    states.foresee(size=800_000_000, keep=2)
    assert capsys.readouterr().err == ""
    states.foresee(size=1_000_000_000, keep=2)
    said = capsys.readouterr().err
    assert "2 training states of 1.0 GB and one more" in said
    assert "3.0 GB more than now, and 2.5 GB are free" in said
    with pytest.raises(CheckpointError, match=r"needs 3\.0 GB and 2\.5 GB are free"):
        states.foresee(size=3_000_000_000, keep=2)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("averaged", [False, True])
def test_the_size_is_known_before_there_are_moments(averaged):
    module, optimizer = fresh()
    before = expected_bytes(module, averaged)
    train(module, optimizer, range(1))
    values = [*module.state_dict().values()]
    values += [slots[k] for slots in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    values += module.parameters() if averaged else []
    assert before == sum(x.nbytes for x in values)


def test_auto_writes_beside_the_training_where_a_gpu_trains():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    chosen = {(w, d.type): saves_beside(w, d) for w in ("auto", "on", "off") for d in (cpu, gpu)}
    assert {key for key, beside in chosen.items() if beside} == {
        ("auto", "cuda"), ("on", "cpu"), ("on", "cuda"),
    }  # fmt: skip
