import json
import math
import re

import pytest
import torch

from fastseg.console import say
from fastseg.pipelines.tools import progress as progress_lines
from fastseg.pipelines.tools.progress import Progress, duration, hush, tracked
from fastseg.report.metrics_log import Meter, MetricsLog


def test_rows_are_valid_json_even_with_nan(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"stage": "teacher", "step": 1, "loss": math.nan})
    assert json.loads(log.path.read_text()) == {"stage": "teacher", "step": 1, "loss": None}


def test_a_torn_last_line_is_left_out(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.rows() == []
    log.append({"kind": "train", "stage": "teacher", "step": 1})
    with log.path.open("a") as file:
        file.write('{"stage": "teach')
    assert log.rows() == [{"kind": "train", "stage": "teacher", "step": 1}]


def test_foreign_lines_do_not_stop_a_run_and_are_kept_aside(tmp_path, capsys):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    rows = [{"kind": "train", "stage": "teacher", "step": step} for step in (1, 2)]
    log.append(rows[0])
    foreign = [b'{"stage": "\xff"}\n', b"[]\n", b"3\n", b'{"stage": "teacher", "step": "4"}\n']
    foreign.append(b'{"kind": "train", "stage": "teacher"}\n')
    with log.path.open("ab") as file:
        file.writelines(foreign)
    log.append(rows[1])
    with log.path.open("ab") as file:
        file.write(b'{"kind": "tra')
    assert log.rows() == rows
    log.rewind("teacher", 1)
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == rows[:1]
    assert (tmp_path / "metrics.jsonl.foreign").read_bytes() == b"".join(foreign)
    said = capsys.readouterr().err
    assert f"warning: 5 lines of {log.path} are no rows" in said
    log.rewind("teacher", 1)
    assert capsys.readouterr().err == ""


def test_rewind_drops_what_will_be_written_again(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for stage, step in [("teacher", 10), ("teacher", 20), ("student", 5), ("student", 10)]:
        log.append({"kind": "train", "stage": stage, "step": step})
    log.rewind("student", 5)
    assert [(r["stage"], r["step"]) for r in log.rows()] == [
        ("teacher", 10),
        ("teacher", 20),
        ("student", 5),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_meter_averages_and_starts_again():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)}, samples=4, waited=0.0)
    meter.add({"loss": torch.tensor(3.0)}, samples=4, waited=0.0)
    values = meter.read()
    assert values["loss"] == pytest.approx(2.0)
    assert values["images_per_s"] > 0
    assert values["data_wait"] == 0
    meter.add({"loss": torch.tensor(5.0)}, samples=4, waited=0.0)
    assert meter.read()["loss"] == pytest.approx(5.0)


def test_progress_prints_plain_lines_into_a_pipe(capsys):
    progress = Progress("teacher", total=3, every_s=0)
    progress.show({"loss": "1.5"})
    for _ in range(3):
        progress.advance()
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"teacher: 1/3 33 % loss 1.5 ETA \d+:\d\d at .*\d\d:\d\d", lines[0])
    assert re.fullmatch(r"teacher: 3/3 100 % loss 1.5 in 0:0\d", lines[2])
    assert "\r" not in "".join(lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (7384, "2:03:04"), (3600, "1:00:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines_in_a_pipe_come_more_and_more_slowly(capsys, monkeypatch):
    """Ten hours of a step a second are some dozen lines, not thousands."""
    now = 0.0
    monkeypatch.setattr(progress_lines.time, "perf_counter", lambda: now)
    progress = Progress("teacher", total=36_000)
    for _ in range(36_000):
        now += 1.0
        progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert 50 < len(lines) < 150
    assert lines[0].startswith("teacher: 10/36000 0 % ETA 9:59:50 at ")
    assert lines[-1] == "teacher: 36000/36000 100 % in 10:00:00"


def test_a_task_of_unknown_length_only_counts(capsys):
    progress = Progress("file.zip", total=0, every_s=0)
    progress.advance(1.5)
    assert capsys.readouterr().err == "file.zip: 1\n"


def test_quiet_leaves_out_progress_and_details(capsys):
    def speak(quiet):
        hush(quiet)
        try:
            for _ in tracked(range(2), "scoring", 2):
                pass
            say("the step is compiled", detail=True)
            say("warning: a file is damaged")
        finally:
            hush(False)
        return capsys.readouterr().err.splitlines()

    assert speak(quiet=True) == ["warning: a file is damaged"]
    assert len(speak(quiet=False)) == 3
