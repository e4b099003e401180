"""Ctrl-C as a terminal sends it, to every process of a run: who ends, how, and what is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastseg.pipelines.dali_loader import dali_import_error

REPO = Path(__file__).parents[2]
PATIENCE_S = 60

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


class Group:
    """A command in a process group of its own, as a shell starts it."""

    def __init__(self, command, said):
        # one thread each: these tests compete with others for the cores
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        self.said = said
        with said.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                env=environment,
            )

    def wait_for(self, text, count=1):
        deadline = time.monotonic() + PATIENCE_S
        while self.said.read_text().count(text) < count:
            assert time.monotonic() < deadline, self.said.read_text()
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.02)

    def interrupt(self):
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self):
        """Exit code, after which no process of the group may be left."""
        code = self.process.wait(PATIENCE_S)
        deadline = time.monotonic() + 10
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.members() == []
        return code

    def members(self):
        """Living processes of the group."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, _, rest = stat.read_text().partition(" (")
            except OSError:
                continue
            state, _, group = rest.rpartition(") ")[2].split()[:3]
            if int(group) == self.process.pid and state != "Z":
                found.append(int(pid))
        return found


@pytest.fixture
def start(tmp_path):
    """Starts commands whose processes are gone after the test, whatever becomes of it."""
    groups = []

    def run(command):
        groups.append(Group(command, tmp_path / f"said-{len(groups)}"))
        return groups[-1]

    yield run
    for group in groups:
        for pid in group.members():
            os.kill(pid, signal.SIGKILL)
        group.process.wait()


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


def test_while_training_the_step_is_saved_and_workers_end(start, scenes, tmp_path):
    arguments = [*options(scenes, tmp_path), "--stages.teacher.steps", "500"]
    arguments += ["--log-every", "1", "--evaluation.every", "1000"]
    run = start(["-m", "fastseg.train", *arguments])
    metrics = tmp_path / "debug" / "metrics.jsonl"
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert run.process.poll() is None, run.said.read_text()
        time.sleep(0.02)
    assert len(run.members()) >= 3  # itself and two workers
    run.interrupt()
    assert run.end() == 0
    assert "run the same command again to continue" in run.said.read_text()
    assert left_over(tmp_path) == []
    again = start(["-m", "fastseg.train", *arguments, "--stop-after", "1"])
    assert again.end() == 0
    assert "continued at step" in again.said.read_text()


def test_while_loading_nothing_is_begun(start, scenes, tmp_path):
    arguments = options(scenes, tmp_path)
    run = start([*slowed("fastseg.trainer", "build_loader"), *arguments])
    run.wait_for("MARK")
    run.interrupt()
    assert run.end() == 130
    said = run.said.read_text()
    assert "interrupted" in said
    assert "Traceback" not in said
    assert left_over(tmp_path) == []
    assert not (tmp_path / "debug" / "metrics.jsonl").exists()
    run_to_the_end(start, arguments)


def test_while_validating_the_step_is_saved(start, scenes, tmp_path):
    arguments = [*options(scenes, tmp_path), "--evaluation.every", "1"]
    run = start([*slowed("fastseg.trainer", "evaluate_subsets", 1), *arguments])
    run.wait_for("MARK")
    run.interrupt()
    assert run.end() == 0
    assert "teacher stopped after step 1 of 3" in run.said.read_text()
    assert left_over(tmp_path) == []
    assert "continued at step 1" in run_to_the_end(start, arguments)


def test_while_scoring_the_weights_stay(start, scenes, tmp_path):
    arguments = options(scenes, tmp_path)
    run = start([*slowed("fastseg.scoring", "evaluate_subsets"), *arguments])
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


def test_the_second_one_ends_at_once(start, scenes, tmp_path):
    arguments = options(scenes, tmp_path)
    run = start([*slowed("fastseg.step", "TrainStep.__call__"), *arguments])
    run.wait_for("MARK")
    run.interrupt()
    time.sleep(0.5)
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
