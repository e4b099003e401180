import json
import math

import pytest
import torch

from fastseg.report.metrics_log import Meter, MetricsLog
from fastseg.report.progress import Progress, duration


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
    assert lines[0].startswith("teacher: 1/3 loss 1.5 ETA ")
    assert "\r" not in "".join(lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (7384, "2:03:04"), (3600, "1:00:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
