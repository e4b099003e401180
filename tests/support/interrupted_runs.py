"""Runs of the debug preset in processes, which are killed and compared with one that was not."""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastseg.checkpoint.intact import examine

TIMED = {"images_per_s", "data_wait", "peak_mib"}


def options(scenes, out, steps, *more):
    """Options of a run of both stages that saves at every step and validates never."""
    return [
        *["--preset", "debug", "--out", str(out), "--data.root", str(scenes)],
        *["--synthetic.train", "0", "--synthetic.val", "0", "--data.no-cache"],
        *["--data.workers", "0", "--data.loader", "torch", "--evaluation.pictures", "1"],
        *["--evaluation.every", "100000", "--save-every", "1", "--log-every", "1"],
        *["--stages.teacher.steps", str(steps), "--stages.student.steps", str(steps), *more],
    ]


def committed(run):
    """The training states of a run that have their name: ``{step: folder}``."""
    found = (run / "checkpoints").glob("step-*")
    return {int(p.name[5:]): p for p in found if p.suffix != ".partial"}


def wait_for(condition, process=None, seconds=60):
    """Wait until a condition holds, while the process lives."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        assert process is None or process.poll() is None, "the process has ended"
        time.sleep(0.001)
    return value


def assert_intact(run):
    """The newest state that has its name is what was written."""
    states = committed(run)
    if states:
        assert examine(states[max(states)]) is None


def rows(run):
    """Rows of a run's log without times and memory."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def assert_same_run(run: Path, other: Path):
    """Weights to the last bit, and every logged number."""
    files = sorted(path.name for path in run.glob("*.safetensors"))
    assert files == sorted(path.name for path in other.glob("*.safetensors"))
    assert files == ["student.safetensors", "teacher.safetensors"]
    for file in files:
        one, two = load_file(run / file), load_file(other / file)
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert rows(run) == rows(other)
