"""Signals as terminals and schedulers send them, to every process of a run: who ends, and how."""

import os
import signal
import time

import pytest

from fastseg import train
from fastseg.engine.stop_request import SAME_REQUEST_S
from fastseg.pipelines.loaders.dali.loader import dali_import_error

# runs the command after replacing one function by a form that says so and dawdles
SLOW = """
import sys, time
import {module} as module
plain = {owner}.{name}
def slow(*args, **options):
    print("MARK", file=sys.stderr, flush=True)
    time.sleep({seconds})
    return plain(*args, **options)
{owner}.{name} = slow
from fastseg import train
sys.exit(train.main(sys.argv[1:]))
"""
ALONE = """
import sys
from pathlib import Path
from fastseg.pipelines import DataConfig, build_loader
settings = dict(root=Path(sys.argv[1]), size=64, batch_size=2, workers=2, loader=sys.argv[2],
                cache=sys.argv[3] == "threads")
for batch in build_loader(DataConfig(**settings), train=True).batches():
    print("MARK", file=sys.stderr, flush=True)
"""


def slowed(module, target, seconds=30):
    """The command whose function ``target`` of ``module`` dawdles at every call."""
    *owner, name = target.split(".")
    code = SLOW.format(
        module=module, owner=".".join(["module", *owner]), name=name, seconds=seconds
    )
    return ["-c", code]


def options(scenes, out):
    return [
        *["--preset", "debug", "--out", str(out), "--data.root", str(scenes)],
        *["--synthetic.train", "0", "--synthetic.val", "0", "--data.no-cache"],
        *["--data.workers", "2", "--data.loader", "torch", "--evaluation.pictures", "1"],
        *["--stages.teacher.steps", "3", "--stages.student.steps", "3"],
        *["--evaluation.every", "3"],
    ]


def left_over(out):
    """Files and folders that were not finished."""
    return [path.name for path in out.rglob("*") if path.name.endswith((".partial", ".tmp"))]


def run_to_the_end(start, arguments):
    again = start(["-m", "fastseg.train", *arguments])
    code = again.end()
    assert code == 0, again.said.read_text()
    return again.said.read_text()


def train_long(start, scenes, out, **more):
    """A run with two worker processes, once it has logged a step; its options."""
    arguments = [*options(scenes, out), "--stages.teacher.steps", "500"]
    arguments += ["--log-every", "1", "--evaluation.every", "1000"]
    run = start(["-m", "fastseg.train", *arguments], **more)
    metrics = out / "debug" / "metrics.jsonl"
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert run.process.poll() is None, run.said.read_text()
        time.sleep(0.02)
    assert len(run.members()) >= 3  # itself and two workers
    return run, arguments


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
@pytest.mark.fault("F16")
def test_while_training_the_step_is_saved_and_workers_end(start, scenes, tmp_path, name):
    run, arguments = train_long(start, scenes, tmp_path)
    run.interrupt(signal.Signals[name])
    run.interrupt(signal.Signals[name])  # as torchrun and a closing terminal repeat it
    assert run.end() == 0, run.said.read_text()
    said = run.said.read_text()
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    assert left_over(tmp_path) == []
    if name == "SIGINT":
        again = start(["-m", "fastseg.train", *arguments, "--stop-after", "1"])
        assert again.end() == 0
        assert "continued at step" in again.said.read_text()


def test_a_run_under_nohup_outlives_its_terminal(start, scenes, tmp_path):
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    run, _ = train_long(start, scenes, tmp_path, prepare=nohup)
    metrics = tmp_path / "debug" / "metrics.jsonl"
    before = metrics.read_text().count("\n")
    run.interrupt(signal.SIGHUP)
    while metrics.read_text().count("\n") < before + 6:  # more than what workers had prepared
        assert run.process.poll() is None, run.said.read_text()
        time.sleep(0.02)
    run.interrupt(signal.SIGTERM)
    assert run.end() == 0


def test_workers_end_with_a_run_that_is_killed(start, scenes, tmp_path):
    run, _ = train_long(start, scenes, tmp_path)
    run.process.kill()
    assert run.end() == -signal.SIGKILL


@pytest.mark.fault("F18")
def test_a_killed_worker_is_one_message(start, scenes, tmp_path):
    run, _ = train_long(start, scenes, tmp_path)
    os.kill(max(run.members()), signal.SIGKILL)
    assert run.end() == 2
    said = run.said.read_text()
    assert said.count("error:") == 1
    assert "a worker process was killed" in said
    assert "--data.workers 0" in said
    assert "Traceback" not in said


STUCK = """
import sys, time
from fastseg.engine import stop_request as interrupt
from fastseg.pipelines.loaders.raw_batches import BatchSource
interrupt.DATA_PATIENCE_S = 1.0
plain = BatchSource._assemble
def stuck(self, step):
    if step == 2:
        print("MARK", file=sys.stderr, flush=True)
        time.sleep(1000)
    return plain(self, step)
BatchSource._assemble = stuck
from fastseg import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.fault("F19")
def test_while_waiting_for_data_that_do_not_come_the_steps_done_are_saved(start, scenes, tmp_path):
    run = start(["-c", STUCK, *options(scenes, tmp_path)])
    run.wait_for("MARK")
    while not (tmp_path / "debug" / "metrics.jsonl").exists():
        time.sleep(0.02)
    time.sleep(1)  # for the two steps that have their data
    run.interrupt(signal.SIGTERM)
    assert run.end() == 0, run.said.read_text()
    assert "stopped while waiting for the data of step 3" in run.said.read_text()
    assert [p.name for p in (tmp_path / "debug/checkpoints").iterdir()] == ["step-00000002"]


def test_while_loading_nothing_is_begun(start, scenes, tmp_path):
    arguments = options(scenes, tmp_path)
    run = start([*slowed("fastseg.engine.trainer", "build_loader"), *arguments])
    run.wait_for("MARK")
    run.interrupt()
    assert run.end() == 130
    said = run.said.read_text()
    assert "interrupted" in said
    assert "Traceback" not in said
    assert left_over(tmp_path) == []
    assert not (tmp_path / "debug" / "metrics.jsonl").exists()
    run_to_the_end(start, arguments)


@pytest.mark.fault("F16")
def test_while_validating_the_step_is_saved(start, scenes, tmp_path):
    arguments = [*options(scenes, tmp_path), "--evaluation.every", "1"]
    run = start([*slowed("fastseg.evaluation.validation", "evaluate_subsets", 1), *arguments])
    run.wait_for("MARK")
    run.interrupt()
    assert run.end() == 0
    assert "teacher stopped after step 1 of 3" in run.said.read_text()
    assert left_over(tmp_path) == []
    assert "continued at step 1" in run_to_the_end(start, arguments)


def test_while_scoring_the_weights_stay(start, scenes, tmp_path):
    arguments = options(scenes, tmp_path)
    run = start([*slowed("fastseg.evaluation.scores", "evaluate_subsets"), *arguments])
    run.wait_for("MARK")
    run.interrupt()
    assert run.end() == 130
    assert "interrupted" in run.said.read_text()
    assert left_over(tmp_path) == []
    path = tmp_path / "debug"
    before = (path / "student.safetensors").read_bytes()
    assert not (path / "results.csv").exists()
    run_to_the_end(start, arguments)
    assert (path / "student.safetensors").read_bytes() == before
    assert (path / "results.csv").exists()


@pytest.mark.fault("F17")
def test_the_second_one_ends_at_once(start, scenes, tmp_path):
    arguments = options(scenes, tmp_path)
    run = start([*slowed("fastseg.engine.step", "TrainStep.__call__"), *arguments])
    run.wait_for("MARK")
    run.interrupt()
    time.sleep(SAME_REQUEST_S + 0.5)
    assert run.process.poll() is None  # the step is being finished
    began = time.monotonic()
    run.interrupt()
    assert run.end() == 130
    assert time.monotonic() - began < 20  # the step takes 30
    assert "Traceback" not in run.said.read_text()
    assert left_over(tmp_path) == []
    run_to_the_end(start, arguments)


@pytest.mark.parametrize(
    ("loader", "how"), [("torch", "processes"), ("torch", "threads"), ("dali", "")]
)
def test_a_loader_alone_leaves_no_process(start, scenes, loader, how):
    if loader == "dali" and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    run = start(["-c", ALONE, str(scenes), loader, how])
    run.wait_for("MARK", count=3)
    run.interrupt()
    assert run.end() != 0
    assert "KeyboardInterrupt" in run.said.read_text()
    assert "egmentation fault" not in run.said.read_text()


HELD = """
import sys, time
from fastseg.checkpoint import commit as module
plain = module.sync
def held(path):
    if path.parent.name == "step-00000002.partial":
        print("MARK", file=sys.stderr, flush=True)
        time.sleep(1000)
    plain(path)
module.sync = held
from fastseg import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.fault("F1", "F3")
def test_killed_while_a_state_is_written_beside_the_training(start, scenes, tmp_path, capsys):
    """The state before stays, and the next start removes what is there of the other."""
    arguments = [*options(scenes, tmp_path), "--save-every", "1", "--data.workers", "0"]
    run = start(["-c", HELD, *arguments, "--save-async", "on"])
    run.wait_for("MARK")
    run.process.kill()
    assert run.end() == -signal.SIGKILL
    states = tmp_path / "debug" / "checkpoints"
    assert sorted(p.name for p in states.iterdir()) == ["step-00000001", "step-00000002.partial"]
    assert train.main([*arguments, "--stop-after", "1"]) == 0
    assert "continued at step 1" in capsys.readouterr().err
    assert sorted(p.name for p in states.iterdir()) == ["step-00000001", "step-00000002"]
