"""Training states that a run writes beside its steps: errors, ends and stops."""

import errno
import threading
from dataclasses import replace

import pytest

from fastseg.checkpoint import commit as commit_module
from fastseg.engine.step import TrainStep
from fastseg.errors import CheckpointError
from fastseg.pipelines import DataError


@pytest.fixture
def teacher(config):
    """Eight steps of one stage that are saved at every second one, beside the training."""
    stage = replace(config.stages["teacher"], steps=8)
    evaluation = replace(config.evaluation, every=1000)
    return replace(config, stages={"teacher": stage}, evaluation=evaluation, save_async="on")


@pytest.fixture
def on_write(monkeypatch):
    """Call something before the files of a state are written, with the name of their folder."""

    def start(call):
        real = commit_module.write_tensors

        def write(tensors, path, *more):
            call(path.parent.name)
            real(tensors, path, *more)

        monkeypatch.setattr(commit_module, "write_tensors", write)

    return start


def states_of(config):
    return sorted(p.name for p in (config.out / "debug" / "checkpoints").iterdir())


@pytest.mark.fault("F20")
def test_an_error_of_the_writer_ends_the_run_at_its_next_step(teacher, fit, on_write, monkeypatch):
    steps, failed = [], threading.Event()

    def full(folder):
        if folder.startswith("step-00000004"):
            failed.set()
            raise OSError(errno.ENOSPC, "No space left on device", folder)

    on_write(full)
    real = TrainStep.__call__

    def step(train, number, *batches):
        steps.append(number + 1)
        if number == 4:
            assert failed.wait(20)
            for thread in threading.enumerate():
                if thread.name == "training-state":
                    thread.join(20)
        return real(train, number, *batches)

    monkeypatch.setattr(TrainStep, "__call__", step)
    with pytest.raises(OSError, match="step-00000004"):
        fit(teacher)
    assert states_of(teacher) == ["step-00000002"]
    assert steps == [1, 2, 3, 4, 5]


def test_a_fault_elsewhere_leaves_the_state_that_is_being_written(teacher, fit, monkeypatch):
    real = TrainStep.__call__

    def step(train, number, *batches):
        if number == 6:
            raise DataError("a file is gone")
        return real(train, number, *batches)

    monkeypatch.setattr(TrainStep, "__call__", step)
    with pytest.raises(DataError, match="a file is gone"):
        fit(teacher)
    assert states_of(teacher) == ["step-00000004", "step-00000006"]


def test_a_stop_waits_for_the_state_that_is_being_written(teacher, fit):
    _, finished = fit(replace(teacher, stop_after=4))
    assert not finished
    assert states_of(teacher) == ["step-00000002", "step-00000004"]


@pytest.mark.fault("F20")
def test_the_disk_is_looked_at_before_the_first_step(teacher, fit, monkeypatch):
    disk = type("Disk", (), {"free": 1000})
    monkeypatch.setattr(commit_module.shutil, "disk_usage", lambda path: disk)
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: pytest.fail("a step was trained"))
    with pytest.raises(ValueError, match=r"no room for the training state .* 1\.0 kB are free"):
        fit(teacher)


@pytest.mark.fault("F19")
def test_a_disk_that_never_answers_ends_the_run_in_time(teacher, fit, monkeypatch):
    """The wait for the writer has the limit of every other wait."""
    real, answers = commit_module.sync, threading.Event()

    def sync(path):
        if path.parent.name == "step-00000004.partial":
            answers.wait(60)
        real(path)

    monkeypatch.setattr(commit_module, "sync", sync)
    config = replace(teacher, parallel=replace(teacher.parallel, timeout=0.02))
    try:
        with pytest.raises(CheckpointError, match=r"step-00000004 is not written after 1\.\d+ s"):
            fit(config)
        assert states_of(config) == ["step-00000002", "step-00000004.partial"]
    finally:
        answers.set()
        for thread in threading.enumerate():
            if thread.name == "training-state":
                thread.join(20)
