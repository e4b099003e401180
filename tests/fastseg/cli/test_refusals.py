"""What the commands say of bad data, weights, places, disks and memory."""

import errno
import subprocess
import sys

import pytest
import torch
from PIL import Image

from fastseg import data, evaluate, train
from fastseg.cli.command import explain
from fastseg.engine.step import TrainStep
from tests.support.commands import a_file, copied, options, run


def test_no_data_at_the_root(tmp_path, capsys):
    root = tmp_path / "nothing"
    code, text = run(train.main, options(root, tmp_path / "runs"), capsys)
    assert code == 2
    assert str(root) in text
    assert "--data.root" in text


@pytest.mark.fault("F5")
def test_a_missing_modality_file_is_named_before_training(scenes, tmp_path, capsys):
    root = copied(scenes, tmp_path)
    victim = a_file(root, "event", "train")
    victim.unlink()
    code, text = run(train.main, options(root, tmp_path / "runs"), capsys)
    assert code == 2
    assert victim.name in text
    assert "event" in text
    assert not (tmp_path / "runs" / "debug" / "metrics.jsonl").exists()


@pytest.mark.fault("F6")
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_truncated_image_is_named(scenes, tmp_path, capsys, workers):
    root = copied(scenes, tmp_path)
    for victim in root.glob("hha/*/train/*/*.png"):
        victim.write_bytes(victim.read_bytes()[:200])
    arguments = options(root, tmp_path / "runs", "--data.workers", workers)
    code, text = run(train.main, arguments, capsys)
    assert code == 2
    assert "_depth_front.png" in text
    assert "truncated" in text or "damaged" in text or "cannot be read" in text
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.fault("F8")
def test_a_label_out_of_range_is_named_with_its_value(scenes, tmp_path, capsys):
    root = copied(scenes, tmp_path)
    for victim in root.glob("semantic/*/train/*/*.png"):
        Image.new("RGBA", Image.open(victim).size, (77, 0, 0, 255)).save(victim)
    code, text = run(train.main, options(root, tmp_path / "runs"), capsys)
    assert code == 2
    assert "_semantic_front.png" in text
    assert "77" in text
    assert "25" in text


def no_room_on_a_gpu():
    raise torch.OutOfMemoryError("tried to allocate 3 GiB")


@pytest.mark.fault("F15")
@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (no_room_on_a_gpu, "3 GiB"),
        # more than a process can address, whatever the machine
        (lambda: torch.empty(2**57, dtype=torch.uint8), "memory"),
        (lambda: bytes(2**57), "MemoryError"),
    ],
    ids=["gpu", "torch on the host", "python"],
)
def test_out_of_memory_names_the_settings_that_help(
    scenes, tmp_path, capsys, monkeypatch, fail, reason
):
    """The state before the step stays, and the same command continues from it."""
    real = TrainStep.__call__

    def full(step_fn, step, *batches):
        return fail() if step == 1 else real(step_fn, step, *batches)

    monkeypatch.setattr(TrainStep, "__call__", full)
    words = [*options(scenes, tmp_path), "--save-every", "1"]
    code, text = run(train.main, words, capsys)
    assert code == 75
    helps = ("--data.batch-size", "--accumulate", "--data.size", "--precision bf16")
    for part in ("out of memory (", reason, *helps):
        assert part in text
    assert [path.name for path in tmp_path.rglob("step-*")] == ["step-00000001"]
    monkeypatch.setattr(TrainStep, "__call__", real)
    code, text = run(train.main, [*words, "--stop-after", "1"], capsys)
    assert code == 0
    assert "continued at step 1" in text


def test_a_missing_matplotlib_is_told_before_training(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, text = run(train.main, options(scenes, tmp_path), capsys)
    assert code == 2
    assert "pip install matplotlib" in text
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset(capsys):
    code, text = run(train.main, ["--preset", "demmo"], capsys)
    assert code == 2
    assert "did you mean 'demo'" in text


@pytest.mark.parametrize(
    "modalities",
    [
        pytest.param("img depth", marks=pytest.mark.fault("F22")),
        # the order, too: some models have an encoder for each
        pytest.param("lidar event depth img", marks=pytest.mark.fault("F30")),
    ],
)
def test_a_checkpoint_of_another_model(finished, scenes, tmp_path, capsys, modalities):
    teacher, names = str(finished[0] / "teacher.safetensors"), modalities.split()
    more = ["--teacher", teacher, "--data.modalities", *names]
    code, text = run(train.main, options(scenes, tmp_path, *more), capsys)
    assert code == 2
    other = f"{len(names)} ({modalities}) wanted"
    assert f"modalities: 4 (img depth event lidar) in the file, {other}" in text


def test_evaluate_without_weights(tmp_path, capsys):
    code, text = run(evaluate.main, ["--checkpoint", str(tmp_path)], capsys)
    assert code == 2
    assert f"no weights at {tmp_path}" in text


def test_data_command_needs_a_task(capsys):
    code, text = run(data.main, [], capsys)
    assert code == 2
    assert "synthetic" in text


def test_a_full_disk_is_explained_and_leaves_no_partial_file(scenes, tmp_path):
    """The largest file that a process may write stands in for the disk."""
    script = (
        "import resource, sys; from fastseg import train; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        "sys.exit(train.main(sys.argv[1:]))"
    )
    arguments = options(scenes, tmp_path, "--save-every", "2", "--evaluation.every", "1000")
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said, entry = done.stderr.splitlines()[-2:]
    assert entry == "see docs/troubleshooting.md#disk-full"
    assert said.startswith(f"error: {tmp_path / 'debug'}")
    assert "make room" in said
    assert "the same command continues" in said
    assert not list((tmp_path / "debug").rglob("*.partial"))
    assert train.main(arguments) == 0


@pytest.mark.parametrize("command", [["fastseg.train", "--help"], ["fastseg.data", "--help"]])
def test_a_reader_that_leaves_ends_a_command_quietly(command):
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 141)


def test_a_folder_in_the_place_of_a_file_is_one_message(finished, tmp_path, capsys):
    code, text = run(evaluate.main, ["--checkpoint", str(tmp_path / ("x" * 300))], capsys)
    assert code == 2
    arguments = ["--checkpoint", str(finished[0]), "--out", str(tmp_path)]
    code, text = run(evaluate.main, arguments, capsys)
    assert code == 2
    assert f"error: --out {tmp_path} is a folder: name a file" in text
    code, text = explain(IsADirectoryError(errno.EISDIR, "Is a directory", str(tmp_path)))
    assert code == 2
    assert text.startswith(f"error: {tmp_path}: Is a directory; move away what stands there")


def test_a_run_cannot_write_its_log_into_a_folder(scenes, tmp_path, capsys):
    log = tmp_path / "debug" / "metrics.jsonl"
    log.mkdir(parents=True)
    code, text = run(train.main, options(scenes, tmp_path), capsys)
    assert code == 2
    assert f"error: {log}: Is a directory" in text
