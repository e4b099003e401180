"""Whole runs on two processes: scores, signals, failures, other numbers of processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fastseg import evaluate, train

TRAIN = ["-m", "fastseg.train"]


def options(scenes, out, *more):
    return [
        *["--preset", "debug", "--out", str(out), "--data.root", str(scenes)],
        *["--synthetic.train", "0", "--synthetic.val", "0", "--data.batch-size", "2"],
        *["--stages.teacher.steps", "4", "--stages.student.steps", "4", *more],
    ]


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def table(file):
    with file.open() as handle:
        return list(csv.reader(handle))


def wait_for_training(run, processes, timeout=120):
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + timeout
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert time.monotonic() < deadline
        assert [p.poll() for p in processes] == [None] * len(processes)
        time.sleep(0.05)


@pytest.mark.fault("F27")
def test_torchrun_scores_every_sample_once_and_one_rank_speaks(scenes, tmp_path, environment):
    """Evaluation is exact: the confusion matrices are those of one process, bit for bit."""
    more = ["--data.eval-batch-size", "1", "--parallel.mode", "replicate", "--ema", "0.5"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, *TRAIN, *options(scenes, tmp_path, *more)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "debug"
    assert done.stdout.count("\nteacher ") == done.stdout.count("\nstudent ") == 1
    assert done.stderr.count("student: trains the student") == 1
    assert "4 steps of 2 samples x 2 processes" in done.stderr
    assert "replicate (a copy per process" in done.stderr
    assert "1 BatchNorm over the global batch (plain PyTorch, for the CPU)" in done.stderr
    assert "optimizer adamw [apex: not installed]" in done.stderr
    assert done.stderr.count("done in ") == 1
    written = [(r["kind"], r["stage"], r["step"], r.get("subset")) for r in rows(run)]
    assert len(written) == len(set(written))
    assert not any("partial" in path.name for path in run.iterdir())
    out = tmp_path / "one.csv"
    assert evaluate.main(["--checkpoint", str(run), "--out", str(out)]) == 0
    assert table(out) == table(run / "results.csv")


@pytest.mark.fault("F16")
def test_a_signal_to_one_rank_saves_and_stops_all_and_others_continue(
    scenes, tmp_path, launch, capsys
):
    """SIGTERM to rank 1 only; then one process continues, then two again."""
    long = ["--stages.teacher.steps", "400", "--evaluation.every", "1000", "--log-every", "1"]
    command = options(scenes, tmp_path, *long)
    run = tmp_path / "debug"
    both = launch([*TRAIN, *command])
    wait_for_training(run, both.ranks)
    both.ranks[1].send_signal(signal.SIGTERM)
    codes, _, said = both.finish()
    assert codes == [0, 0], said
    assert said.count("run the same command again to continue") == 1
    newest = max(int(p.name.removeprefix("step-")) for p in (run / "checkpoints").iterdir())
    assert f"stopped after step {newest} of 400" in said
    before = [row for row in rows(run) if row["kind"] == "train"]
    assert [row["step"] for row in before] == list(range(1, newest + 1))

    assert train.main(command) == 2
    said = capsys.readouterr().err
    assert "samples per step: 4 before, 2 now" in said
    assert "--data.batch-size x --accumulate x processes" in said

    assert train.main([*command, "--data.batch-size", "4", "--stop-after", "2"]) == 0
    said = capsys.readouterr().err
    assert f"continued at step {newest}" in said
    assert "400 steps of 4 samples, 3 per epoch" in said
    codes, _, said = launch([*TRAIN, *command, "--stop-after", "2"]).finish()
    assert codes == [0, 0], said
    assert f"continued at step {newest + 2}" in said
    steps = [row["step"] for row in rows(run) if row["kind"] == "train"]
    assert steps == list(range(1, newest + 5))


def test_rows_of_a_resumed_run_are_those_of_one_that_was_not_stopped(scenes, tmp_path, launch):
    """The sums of a row that a stop cuts are those of each process."""
    more = ["--log-every", "3", "--parallel.mode", "replicate"]
    for out, stops in (
        ("whole", [[]]),
        ("parts", [["--stop-after", "2"], ["--stop-after", "3"], []]),
    ):
        for stop in stops:
            command = [*TRAIN, *options(scenes, tmp_path / out, *more, *stop)]
            codes, _, said = launch(command).finish()
            assert codes == [0, 0], said
    timed = {"images_per_s", "data_wait", "peak_mib"}
    whole, parts = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows(tmp_path / out / "debug")]
        for out in ("whole", "parts")
    )
    assert parts == whole


def test_a_rank_with_other_settings_ends_all_with_one_message(scenes, tmp_path, launch):
    command = [*TRAIN, *options(scenes, tmp_path)]
    codes, out, said = launch(command, per_rank=[(1, ["--seed", "5"])]).finish()
    assert codes == [2, 2]
    assert out == ""
    assert said.count("error:") == 1
    assert "settings: rank 1 against rank 0" in said
    assert "at step 1 of teacher" in said
    assert "Traceback" not in said


def test_a_fault_of_one_rank_ends_all_with_its_message_and_code(scenes, tmp_path, launch):
    """Rank 1 alone finds no data; rank 0 hears of it and stays silent."""
    command = [*TRAIN, *options(scenes, tmp_path)]
    missing = ["--data.root", str(tmp_path / "nothing")]
    codes, _, said = launch(command, per_rank=[(1, missing)]).finish()
    assert codes == [2, 2]
    assert said.count("error:") == 1
    assert "rank 1: error:" in said
    assert str(tmp_path / "nothing") in said
    assert "Traceback" not in said


@pytest.mark.fault("F18")
def test_a_killed_rank_ends_the_other_with_a_reason(scenes, tmp_path, launch):
    long = ["--stages.teacher.steps", "400", "--evaluation.every", "1000", "--log-every", "1"]
    both = launch([*TRAIN, *options(scenes, tmp_path, *long)])
    wait_for_training(tmp_path / "debug", both.ranks)
    both.ranks[0].kill()  # and with it the store that the processes share
    codes, _, said = both.finish(timeout=60)
    assert codes == [-signal.SIGKILL, 69]
    assert said.count("error:") == 1
    assert "rank 1 lost another process" in said
    assert "Traceback" not in said


def test_a_wrong_option_is_said_once(launch):
    codes, _, said = launch([*TRAIN, "--data.siez", "64"]).finish()
    assert codes == [2, 2]
    assert said.count("Unrecognized options:") == 1


@pytest.mark.fault("F18")
def test_ranks_whose_torchrun_is_killed_save_and_leave(scenes, tmp_path, environment):
    long = ["--stages.teacher.steps", "4000", "--evaluation.every", "5000", "--log-every", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, *TRAIN, *options(scenes, tmp_path, *long)]
    said = tmp_path / "said"
    with said.open("w") as file:
        launcher = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        wait_for_training(tmp_path / "debug", [launcher])
        launcher.kill()
        launcher.wait()
        deadline = time.monotonic() + 60
        while processes_of(tmp_path):
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
    finally:
        for pid in processes_of(tmp_path):
            os.kill(pid, signal.SIGKILL)
    assert "run the same command again to continue" in said.read_text()
    (state,) = (tmp_path / "debug" / "checkpoints").iterdir()
    newest = int(state.name.removeprefix("step-"))
    assert rows(tmp_path / "debug")[-1]["step"] == newest


def processes_of(folder):
    """Ids of the living processes that a run into a folder has; torchrun gives each a session."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(folder) in command.read_bytes():
                found.append(int(command.parent.name))
    return found
