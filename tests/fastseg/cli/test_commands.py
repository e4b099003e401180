"""The commands as a user meets them: what a run leaves, scores and continues."""

import csv
import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastseg import evaluate, train
from fastseg.cli.parse import parse
from fastseg.config.serialise import read_config
from fastseg.evaluation import from_weights
from fastseg.evaluation import scores as scores_module
from fastseg.evaluation.subsets import all_subsets
from tests.support.commands import options, run

SUBSETS = [subset.name for subset in all_subsets("RDEL")]


def test_a_run_leaves_everything_it_promises(finished):
    path, done = finished
    names = {p.name for p in path.iterdir()}
    assert {
        *{"config.json", "metrics.jsonl", "teacher.safetensors", "student.safetensors"},
        *{"results.csv", "report.html"},
    } <= names
    assert not any("partial" in name for name in names)
    assert "checkpoints" not in names
    table = done.stdout.splitlines()
    assert table[0].split() == [*SUBSETS, "Mean"]
    assert [line.split()[0] for line in table[1:]] == ["teacher", "student", "gain"]
    for word in ("loss", "mIoU", "images/s", "data-wait", "100 %"):
        assert word in done.stderr


def test_the_report_says_that_the_scenes_are_synthetic(finished):
    page = (finished[0] / "report.html").read_text()
    assert "<h1>debug: synthetic scenes (deliver layout), mit_nano</h1>" in page


def test_results_have_one_row_per_network_and_subset(finished):
    with (finished[0] / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["subset"]) for r in rows] == [
        (model, subset) for model in ("teacher", "student") for subset in [*SUBSETS, "Mean"]
    ]
    assert list(rows[0])[:5] == ["model", "subset", "corruption", "miou_all", "miou_present"]
    assert len(rows[0]) == 5 + 25
    assert {r["corruption"] for r in rows} == {"none"}


def test_metrics_rows_follow_their_schema(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    train_rows = [r for r in rows if r["kind"] == "train"]
    assert {r["stage"] for r in train_rows} == {"teacher", "student"}
    for row in train_rows:
        assert {"step", "lr", "loss", "ohem", "grad_norm", "images_per_s", "data_wait"} <= set(row)
        assert 0 <= row["data_wait"] <= 1
    assert all({"logit", "hpdm", "rrm"} <= set(r) for r in train_rows if r["stage"] == "student")
    assert {r["subset"] for r in rows if r["kind"] == "eval"} == {"RDEL", "Mean"}


def test_evaluate_reprints_the_table(finished, capsys, tmp_path):
    path, done = finished
    out = tmp_path / "scores.csv"
    assert evaluate.main(["--checkpoint", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == done.stdout.strip()
    assert out.read_text() == (path / "results.csv").read_text()


def test_evaluate_one_file_away_from_its_run(finished, scenes, capsys, tmp_path):
    path, done = finished
    moved = tmp_path / "student.safetensors"
    shutil.copy(path / "student.safetensors", moved)
    assert evaluate.main(["--checkpoint", str(moved)]) == 2
    assert "name the data with --data.root" in capsys.readouterr().err
    assert evaluate.main(["--checkpoint", str(moved), "--root", str(scenes)]) == 0
    student = next(line for line in done.stdout.splitlines() if line.startswith("student"))
    assert student.split() in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_evaluate_knows_the_names_of_training(finished):
    path, _ = finished
    words = ["--data.root", "elsewhere", "--data.eval-split", "test", "--data.eval-size", "96"]
    words += ["--data.eval-batch-size", "3", "--data.loader", "torch", "--data.workers", "0"]
    options = parse(
        from_weights.EvaluateConfig,
        args=["--checkpoint", str(path), *words, "--evaluation.missing", "zero"],
    )
    before = read_config(path / "config.json")
    config = from_weights.run_config(options, from_weights.weights_files(path))
    changes = {"root": Path("elsewhere"), "eval_split": "test", "eval_size": 96}
    changes |= {"eval_batch_size": 3, "loader": "torch", "workers": 0}
    assert config.data == replace(before.data, **changes)
    assert config.evaluation.missing == "zero"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--size", "33"], "size must be a multiple of 32 from 32 to 32768, got 33"),
        (["--size", "0"], "size must be a multiple of 32 from 32 to 32768, got 0"),
        (["--batch-size", "-1"], "batch_size must be at least 1, got -1"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--split", ""], "split must be text that is not empty"),
        (["--split", "nowhere"], "nowhere"),
        (["--corruption.blackout", "1", "--corruption.modalities", "radar"], "radar"),
        (["--out", "{folder}"], "--out {folder} is a folder: name a file"),
        (["--out", "{file}/scores.csv"], "--out {file}/scores.csv cannot be written"),
        # a folder in which nobody may make a file
        (["--out", "/proc/scores.csv"], "--out /proc/scores.csv cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_evaluate_refuses_a_wrong_option_before_it_scores(
    finished, capsys, tmp_path, monkeypatch, wrong, message
):
    def forbidden(*_):
        raise AssertionError("something was scored")

    monkeypatch.setattr(scores_module, "evaluate_subsets", forbidden)
    (tmp_path / "file").touch()
    places = {"folder": tmp_path, "file": tmp_path / "file"}
    arguments = [option.format(**places) for option in wrong]
    code, text = run(evaluate.main, ["--checkpoint", str(finished[0]), *arguments], capsys)
    assert code == 2
    assert "".join(message.format(**places).split()) in "".join(text.split())


def test_evaluate_prints_what_cannot_be_written(finished, capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "scores.csv")

    monkeypatch.setattr(evaluate, "write_results", full)
    arguments = ["--checkpoint", str(finished[0]), "--out", str(tmp_path / "scores.csv")]
    assert evaluate.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out.strip() == finished[1].stdout.strip()
    assert "No space left on device" in captured.err


@pytest.mark.parametrize("old", [False, True], ids=["absolute", "as given"])
def test_evaluate_finds_relative_data_from_another_folder(
    finished, scenes, capsys, tmp_path, monkeypatch, old
):
    """Older configs hold the root as it was given."""
    (tmp_path / "data").symlink_to(scenes)
    shutil.copytree(finished[0], tmp_path / "runs" / "debug")
    monkeypatch.chdir(tmp_path)
    assert train.main(options("data", "runs")) == 0
    file = tmp_path / "runs" / "debug" / "config.json"
    written = json.loads(file.read_text())
    assert written["data"]["root"] == str(tmp_path / "data")
    if old:
        written["data"]["root"], written["out"] = "data", "runs"
        file.write_text(json.dumps(written))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", "../runs/debug"]) == 0
    assert capsys.readouterr().out.strip() == finished[1].stdout.strip()


def test_running_a_finished_run_again_only_scores_it(finished, scenes, capsys):
    path, done = finished
    before = (path / "student.safetensors").stat().st_mtime_ns
    assert train.main(options(scenes, path.parent)) == 0
    assert (path / "student.safetensors").stat().st_mtime_ns == before
    assert capsys.readouterr().out.strip() == done.stdout.strip()


def test_a_run_from_a_given_teacher_scores_both(finished, scenes, tmp_path, capsys):
    path, done = finished
    more = ["--teacher", str(path / "teacher.safetensors"), "--evaluation.pictures", "0"]
    assert train.main(options(scenes, tmp_path, *more)) == 0
    assert capsys.readouterr().out.strip() == done.stdout.strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues(scenes, tmp_path, number):
    command = [sys.executable, "-m", "fastseg.train", *options(scenes, tmp_path)]
    command += ["--stages.teacher.steps", "400", "--evaluation.every", "1000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "debug" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "run the same command again to continue" in said
    states = [p.name for p in (tmp_path / "debug" / "checkpoints").iterdir()]
    assert states
    assert not any(name.endswith(".partial") for name in states)
    done = subprocess.run(
        [*command, "--stop-after", "1"], capture_output=True, text=True, timeout=120, check=False
    )
    newest = max(int(name.removeprefix("step-")) for name in states)
    assert done.returncode == 0
    assert f"continued at step {newest}" in done.stderr
    assert f"stopped after step {newest + 1}" in done.stderr


def test_evaluate_under_a_corruption(finished, capsys, tmp_path):
    path, done = finished
    plain = [line.split() for line in done.stdout.strip().splitlines()]

    def scores(*options):
        assert evaluate.main(["--checkpoint", str(path), *options]) == 0
        captured = capsys.readouterr()
        return [line.split() for line in captured.out.strip().splitlines()], captured.err

    file, faults = tmp_path / "dark.csv", ["--corruption.blackout", "1"]
    faults += ["--corruption.modalities", "event", "--out", str(file)]
    dark, said = scores(*faults)
    with file.open() as rows:
        recorded = {row["corruption"] for row in csv.DictReader(rows)}
    assert recorded == {"blackout 1.0, modalities event"}
    assert "sensors are corrupted: blackout 1.0, modalities event" in said
    for before, after in zip(plain[1:], dark[1:], strict=True):
        for name, old, new in zip(plain[0], before[1:], after[1:], strict=True):
            assert "E" in name or name == "Mean" or old == new
    assert dark[1] != plain[1]
    noisy, _ = scores("--corruption.noise", "high", "--batch-size", "2")
    again, _ = scores("--corruption.noise", "high", "--batch-size", "5")
    assert noisy == again != plain
