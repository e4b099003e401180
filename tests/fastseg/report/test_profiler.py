"""The profiler's window, the closing line, the forecast."""

import gzip
import json
import re

import pytest
import torch

from fastseg import train
from fastseg.distributed.ranks import Ranks
from fastseg.report.profiler import StepWatch

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
