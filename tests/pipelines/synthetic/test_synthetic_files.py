"""The synthetic set on disk: layout, manifest, resume, refusals, interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg import data
from fastseg.pipelines.errors import DataError
from fastseg.pipelines.synthetic import PROFILES, SyntheticConfig, generate, profile, shown_name
from fastseg.pipelines.synthetic.writer import array_hash

REPO = Path(__file__).parents[3]


def make(out: Path, **changes: int) -> SyntheticConfig:
    config = SyntheticConfig(out, size=64, train=15, val=5, test=0, workers=1)
    config = replace(config, **changes)
    generate(config, progress=False)
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("set") / "rain_sun_demo")


def manifest(config: SyntheticConfig) -> dict:
    return json.loads((config.out / "manifest.json").read_text())


def test_layout(made):
    images = sorted(made.out.glob("img/*/train/MAP_*/*_rgb_front.png"))
    assert len(images) == 15
    assert len(list(made.out.glob("img/*/val/*/*.png"))) == 5
    for path in images:
        for folder, tag in (("hha", "depth"), ("depth", "depth"), ("event", "event")):
            parts = path.relative_to(made.out).parts
            name = parts[-1].replace("rgb", tag)
            assert made.out.joinpath(folder, *parts[1:-1], name).is_file()
    assert {p.parts[-4] for p in images} == {"cloud", "fog", "night", "rain", "sun"}
    cases = {p.parts[-2].split("_", 3)[3] for p in images if p.parts[-2].count("_") == 3}
    assert cases == {"motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres"}
    assert not list(made.out.rglob(".*.partial"))
    assert sorted(p.name for p in made.out.iterdir() if p.is_file()) == ["manifest.json"]


def test_manifest(made):
    content = manifest(made)
    assert content["settings"]["size"] == 64
    assert len(content["files"]) == 20 * 6
    for name in list(content["files"])[::17]:
        decoded = np.asarray(Image.open(made.out / name))
        assert content["files"][name] == array_hash(decoded)
    assert sum(content["histogram"]["train"].values()) == 15 * 64 * 64
    assert content["histogram"]["train"]["ignored"] > 0


def test_finished_set_is_left_alone(made, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in made.out.rglob("*") if p.is_file()}
    monkeypatch.setattr("fastseg.pipelines.synthetic.generation.write_sample", None)
    assert generate(made) == made.out
    assert before == {p: p.stat().st_mtime_ns for p in made.out.rglob("*") if p.is_file()}


def test_resume_repairs_and_keeps(made, tmp_path):
    config = make(tmp_path / "set")
    assert manifest(config) == manifest(made)
    files = sorted(config.out.rglob("*.png"))
    lost, broken = files[3], files[40]
    assert lost.parts[-2] != broken.parts[-2]
    whole = lost.read_bytes(), broken.read_bytes()
    lost.unlink()
    broken.write_bytes(whole[1][: len(whole[1]) // 2])
    (config.out / "manifest.json").rename(config.out / "manifest.partial.json")
    kept = {p: p.stat().st_mtime_ns for p in files[60:]}
    generate(config, progress=False)
    assert (lost.read_bytes(), broken.read_bytes()) == whole
    rewritten = [p for p, stamp in kept.items() if p.stat().st_mtime_ns != stamp]
    # the two repaired samples are rewritten whole, nothing else is
    assert len(rewritten) <= 2 * 5
    assert manifest(config) == manifest(made)


def test_missing_file_of_a_finished_set_is_restored(tmp_path):
    config = make(tmp_path / "set", train=5, val=0)
    lost = next(config.out.rglob("lidar/**/*.png"))
    lost.unlink()
    generate(config, progress=False)
    assert lost.is_file()


def test_workers_do_not_matter(tmp_path):
    counts = {"train": 33, "val": 0}
    one = make(tmp_path / "one", **counts, workers=1)
    two = make(tmp_path / "two", **counts, workers=2)
    assert (one.out / "manifest.json").read_bytes() == (two.out / "manifest.json").read_bytes()


def test_seed_changes_every_file(made, tmp_path):
    other = manifest(make(tmp_path / "set", seed=1))["files"]
    files = manifest(made)["files"]
    assert files.keys() == other.keys()
    same = {name for name in files if files[name] == other[name]}
    # an overexposed picture of fog is white whatever the scene
    assert all(name.startswith("img/fog/") and "overexposure" in name for name in same), same


def test_other_settings_are_refused(made):
    with pytest.raises(DataError, match=r"seed is 0, asked for 7; size is 64, asked for 96"):
        generate(replace(made, seed=7, size=96))


def test_other_settings_are_refused_while_unfinished(tmp_path):
    config = make(tmp_path / "set", train=5, val=0)
    (config.out / "manifest.json").rename(config.out / "manifest.partial.json")
    with pytest.raises(DataError, match="train is 5, asked for 6"):
        generate(replace(config, train=6), progress=False)


def test_foreign_folder_is_refused(tmp_path):
    for name, content in (("labels", None), ("manifest.json", '{"dataset": "mine"}')):
        out = tmp_path / name
        out.mkdir()
        (out / name).mkdir() if content is None else (out / name).write_text(content)
        with pytest.raises(DataError, match=f"holds other files, such as {name}.*nothing was writ"):
            generate(SyntheticConfig(out, size=64, train=5, val=0))
        assert [p.name for p in out.rglob("*")] == [name]


def test_hidden_files_make_no_folder_foreign(tmp_path):
    (tmp_path / ".gitkeep").touch()
    generate(SyntheticConfig(tmp_path, size=64, train=1, val=0), progress=False)
    assert (tmp_path / "manifest.json").is_file()


def test_file_as_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(DataError, match="is a file"):
        generate(SyntheticConfig(path))


def test_broken_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is not valid JSON"):
        generate(SyntheticConfig(tmp_path))


def test_a_rendered_set_is_called_synthetic_where_people_read_its_name(made, tmp_path, capsys):
    called = "synthetic scenes (deliver layout)"
    assert shown_name("deliver", made.out) == called
    assert data.main(["check", "--data.root", str(made.out), "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{called} at {made.out}: ")
    # one that is still being rendered has its settings already
    (tmp_path / "manifest.partial.json").write_bytes((made.out / "manifest.json").read_bytes())
    assert shown_name("deliver", tmp_path) == called


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b"{}", b'{"dataset": "ours"}', b"\xff"])
def test_a_set_of_other_origin_keeps_its_name(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    assert shown_name("deliver", tmp_path) == "deliver"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 63}, "from 64 to 1042, got 63"),
        ({"size": 1043}, "got 1043"),
        ({"train": -1}, "train must be at least 0, got -1"),
        ({"train": 0, "val": 0}, "nothing to render"),
        ({"workers": -2}, "workers must be from 0 to 1024, got -2"),
        ({"lidar": "dense"}, "one of rich, grey, got 'dense'"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(Path("x"), **changes)


def test_profiles():
    for name in PROFILES:
        assert SyntheticConfig(Path("x"), **profile(name)).profile == name
    assert SyntheticConfig(Path("x"), train=7).profile == "custom"
    with pytest.raises(ValueError, match="known are demo"):
        profile("huge")


def test_command_line(tmp_path, capsys):
    args = [
        "synthetic",
        "--out",
        str(tmp_path / "set"),
        "--size",
        "64",
        "--train",
        "5",
        "--val",
        "0",
    ]
    assert data.main(args) == 0
    assert "train 5 frames of 64 x 64 px" in capsys.readouterr().out
    assert data.main([*args, "--seed", "3"]) == 2
    assert "seed is 0, asked for 3" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        data.main(["synthetic", "--out", str(tmp_path / "b"), "--size", "9"])
    assert stopped.value.code == 2
    assert "got 9" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_interrupt_leaves_no_process_and_can_be_continued(tmp_path, stop):
    out = tmp_path / "set"
    counts = ["--size", "64", "--train", "2000", "--val", "0", "--workers", "2"]
    command = [sys.executable, "-m", "fastseg.data", "synthetic", "--out", str(out), *counts]
    process = subprocess.Popen(
        command,
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a suite that was started in the background ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("semantic/*/*/*/*.png")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = _children(process.pid)
    assert len(children) >= 2
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # the keyboard's interrupt reaches the whole group
    else:
        process.kill()
    _, messages = process.communicate(timeout=30)
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    while any(_runs(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_runs(child) for child in children)
    if stop == signal.SIGINT:
        assert messages.rstrip().endswith("interrupted; the same command continues")
    assert (out / "manifest.partial.json").is_file()
    assert not (out / "manifest.json").exists()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
