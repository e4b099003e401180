"""The profiler's window, the closing line, the forecast, TensorBoard."""

import gzip
import json
import re
import sys
import types

import pytest
import torch

from fastseg import train
from fastseg.distributed.ranks import Ranks
from fastseg.errors import ConfigError
from fastseg.report.profiler import StepWatch
from fastseg.report.tensorboard import open_board

CPU = torch.device("cpu")


def command(scenes, out, steps, *more):
    return [
        *["--preset", "debug", "--out", str(out), "--data.root", str(scenes), "--device", "cpu"],
        *["--synthetic.train", "0", "--synthetic.val", "0", "--evaluation.samples", "2"],
        *["--stages.teacher.steps", str(steps), "--stages.student.steps", "2", *more],
    ]


def operators_in(trace):
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    return [e["name"] for e in events if e.get("cat") == "cpu_op"]


def test_a_run_leaves_traces_and_says_what_was_dear(scenes, tmp_path, capsys):
    assert train.main(command(scenes, tmp_path, 4, "--profile-steps", "3")) == 0
    said = capsys.readouterr().err
    run = tmp_path / "debug"
    names = operators_in(run / "trace-teacher.json.gz")
    assert names.count("aten::_fused_adamw_") == 2 * 3  # two groups of parameters
    assert "teacher: 3 steps profiled" in said
    # the student's stage is shorter than the window
    assert operators_in(run / "trace-student.json.gz").count("aten::_fused_adamw_") == 2 * 2
    assert "student: 2 steps profiled" in said
    rows = re.findall(r"^ +(\d+\.\d) % +(\d+\.\d\d) ms +(\d+) calls  (\S+)$", said, re.M)
    assert len(rows) == 2 * 10
    shares = [float(share) for share, *_ in rows[:10]]
    assert shares == sorted(shares, reverse=True)
    assert 10 < sum(shares) <= 100.5
    assert re.search(
        r"teacher: 4 steps in 0:\d\d, \d+\.\d images/s, \d+ % of the time waiting for data", said
    )
    assert re.search(r"teacher: a step took \d+ ms, 2 of them 0:\d\d", said)
    assert "teacher: kernels off (a CPU runs the definitions of the losses)" in said


def watched(tmp_path, rank=0, steps=14, profile_steps=2, expected=14, **options):
    ranks = Ranks(CPU, rank, 2)
    watch = StepWatch("stage", tmp_path, ranks, profile_steps, expected=expected, **options)
    for _ in range(steps):
        watch.before()
        torch.zeros(3).cos_()
        watch.after(samples=4, waited=0.0)
    watch.close()
    return watch


def test_the_window_lies_behind_the_first_steps(tmp_path, capsys):
    watched(tmp_path)
    said = capsys.readouterr().err
    assert "stage: 2 steps profiled" in said
    assert operators_in(tmp_path / "trace-stage.json.gz").count("aten::cos_") == 2
    assert "stage: 14 steps in" in said


def test_a_session_that_ends_before_the_window_leaves_no_trace(tmp_path, capsys):
    watched(tmp_path, steps=5)
    assert list(tmp_path.iterdir()) == []
    assert "stage: 5 steps in" in capsys.readouterr().err


def test_the_line_counts_the_samples_of_all_processes(tmp_path, monkeypatch):
    watch = watched(tmp_path, profile_steps=0)
    clock = iter([watch._began + 7.0])
    monkeypatch.setattr("fastseg.report.profiler.time.perf_counter", lambda: next(clock))
    watch._waited = 3.5
    assert watch.summary() == (
        "stage: 14 steps in 0:07, 16.0 images/s, 50 % of the time waiting for data"
    )


def test_another_process_writes_and_says_nothing(tmp_path, capsys):
    watched(tmp_path, rank=1, forecast=True)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("forecast", [False, True])
def test_a_stage_without_a_rehearsal_is_forecast_by_its_second_step(tmp_path, capsys, forecast):
    watched(tmp_path, profile_steps=0, forecast=forecast)
    assert ("stage: a step took 0 ms, 12 of them 0:00" in capsys.readouterr().err) == forecast


class Writer:
    """TensorBoard's writer, as far as it is used."""

    def __init__(self, folder):
        self.folder, self.scalars, self.flushed = folder, [], 0

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        self.flushed = len(self.scalars)


@pytest.fixture
def tensorboard(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    writers = []

    def make(folder):
        writers.append(Writer(folder))
        return writers[-1]

    module.SummaryWriter = make
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return writers


def test_tensorboard_gets_the_numbers_of_the_log(scenes, tmp_path, tensorboard):
    arguments = command(scenes, tmp_path, 2, "--tensorboard", "--log-every", "1")
    assert train.main([*arguments, "--stop-after", "1"]) == 0
    assert train.main(arguments) == 0
    run = tmp_path / "debug"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = {
        ("/".join(filter(None, (r["kind"], r["stage"], r.get("subset")))) + f"/{k}", v, r["step"])
        for r in rows
        for k, v in r.items()
        if isinstance(v, float)
    }
    wanted |= {
        (f"train/{r['stage']}/modality_steps/{name}", float(count), r["step"])
        for r in rows
        for name, count in r.get("modality_steps", {}).items()
    }
    assert {s for writer in tensorboard for s in writer.scalars} == wanted
    assert ("eval/teacher/RDEL/miou_all", 2) in {(name, step) for name, _, step in wanted}
    assert {writer.folder for writer in tensorboard} == {str(run / "tensorboard")}
    assert all(writer.flushed == len(writer.scalars) > 0 for writer in tensorboard)


def test_without_tensorboard_one_message_comes_before_any_training(
    scenes, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train.main(command(scenes, tmp_path, 2, "--tensorboard")) == 2
    said = capsys.readouterr().err
    assert "--tensorboard needs TensorBoard" in said
    assert "pip install tensorboard" in said
    assert "teacher:" not in said
    assert not (tmp_path / "debug" / "metrics.jsonl").exists()
    with pytest.raises(ConfigError):
        open_board(True, tmp_path)


def test_a_board_that_is_not_wanted_needs_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    open_board(False, tmp_path)({"kind": "train", "stage": "a", "step": 1, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []
