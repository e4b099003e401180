"""A first description that is guessed from a folder."""

import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from fastseg import data
from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.inspection.describe.guessing import guess
from tests.support.own_tree import COLOURS, write_own

SIZES = ((16, 24), (16, 24), (20, 12))


@pytest.mark.parametrize(
    ("coding", "splits", "way"),
    [("ids", "folders", "folders"), ("indices", "lists", "lists"), ("colours", "none", "shares")],
)
def test_what_is_written_passes_check_unedited(tmp_path, capsys, coding, splits, way):
    root, out = tmp_path / "data", tmp_path / "mine.toml"
    write_own(root, coding, {"train": 8, "val": 4}, SIZES, splits)
    words = ["--root", str(root), "--out", str(out)]
    assert data.main(["describe", *words]) == 0
    said = capsys.readouterr().out
    assert f"coding {coding}, 5 classes" in said
    assert "2 sizes: 24 x 16, 12 x 20" in said
    spec = get_dataset(str(out))
    assert [(m.name, m.bits, m.sensor) for m in spec.modalities] == [
        ("rgb", (8,), "camera"),
        ("thermal", (16,), "other"),
    ]
    mean = spec.modalities[1].mean[0] * 65535
    assert 29_000 < mean < 31_100
    assert way in out.read_text()
    if coding == "colours":
        assert sorted(spec.palette) == sorted(COLOURS)
    checked = ["--data.dataset", str(out), "--data.root", str(root), "--workers", "1"]
    assert data.main(["check", *checked]) == 0
    assert "no faults" in capsys.readouterr().out
    before = out.read_bytes()
    assert data.main(["describe", *words]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert data.main(["describe", *words, "--overwrite"]) == 0
    assert "is replaced" in capsys.readouterr().out


def test_files_of_a_sample_may_lie_in_one_folder(tmp_path):
    write_own(tmp_path / "a", counts={"train": 4}, sizes=((16, 24),), splits="none")
    root = tmp_path / "b"
    root.mkdir()
    for path in (tmp_path / "a").rglob("*.png"):
        shutil.copy(path, root / f"{path.stem}_{path.parent.name}.png")
    values = guess(root, 4).values
    assert [s["files"] for s in values["sensors"]] == ["{name}_rgb.png", "{name}_thermal.png"]
    assert values["label"]["files"] == "{name}_labels.png"


def test_folders_that_do_not_serve(tmp_path):
    with pytest.raises(DataError, match="no images or arrays under"):
        guess(tmp_path, 4)
    write_own(tmp_path, counts={"train": 3}, sizes=((16, 24),))
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(DataError, match="looks like labels"):
        guess(tmp_path, 4)
    shutil.rmtree(tmp_path / "thermal")
    with pytest.raises(DataError, match="do not pair"):
        guess(tmp_path, 4)


def test_a_large_folder_is_sampled_and_says_so(tmp_path, capsys):
    root, out, count = tmp_path / "data", tmp_path / "mine.toml", 2100
    write_own(root, "indices", {"train": 3}, ((8, 12),), "none")
    for folder in ("rgb", "thermal", "labels"):
        for number in range(3, count):
            os.link(root / folder / f"{number % 3:03d}.png", root / folder / f"{number:03d}.png")
    start = time.perf_counter()
    assert data.main(["describe", "--root", str(root), "--out", str(out)]) == 0
    assert time.perf_counter() - start < 20
    said = capsys.readouterr().out
    assert "rgb: 2100 files rgb/{name}.png, 8-bit, 3 channels, one size: 12 x 8 (in 1050," in said
    assert "classes in 350 of 2100 files, evenly spread" in said
    assert "values that other label files have: fastseg.data check finds them" in said
    # the colours are those of the files, not VOC's
    assert get_dataset(str(out)).palette == COLOURS


def test_palettes_that_differ_are_not_taken_over(tmp_path):
    write_own(tmp_path, "indices", {"train": 3}, ((16, 24),), "none")
    path = tmp_path / "labels" / "001.png"
    image = Image.open(path)
    image.putpalette(bytes(reversed(range(256))) * 3)
    image.save(path)
    found = guess(tmp_path, 4)
    assert not any("colour" in one for one in found.values["classes"])
    assert "palettes differ between files or repeat a colour: none was taken over" in found.edit


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_share_of_a_tiny_set_is_empty(tmp_path, count):
    root, out = tmp_path / "data", tmp_path / "mine.toml"
    write_own(root, "ids", {"train": count}, ((16, 24),), "none")
    assert data.main(["describe", "--root", str(root), "--out", str(out)]) == 0
    spec = get_dataset(str(out))
    sizes = [len(list_split(spec, root, split)) for split in ("train", "val")]
    assert sum(sizes) == count
    assert min(sizes) >= 1
    assert f"{sizes[0]} to train and {sizes[1]} to val" in out.read_text()


def test_one_sample_cannot_be_dealt_out(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "mine.toml"
    write_own(root, "ids", {"train": 1}, ((16, 24),), "none")
    assert data.main(["describe", "--root", str(root), "--out", str(out)]) == 2
    assert "too few samples to deal out to train and val: 1" in capsys.readouterr().err
    assert not out.exists()


def test_a_test_split_and_one_without_labels(tmp_path):
    write_own(tmp_path, "ids", {"train": 4, "test": 2}, ((16, 24),))
    found = guess(tmp_path, 4)
    assert found.values["splits"] == {"folders": {"train": "train", "test": "test"}}
    note = "there is no split val: python -m fastseg.train --data.eval-split test scores test"
    assert note in found.edit
    write_own(tmp_path / "b", "ids", {"train": 4, "val": 2, "test": 2}, ((16, 24),))
    shutil.rmtree(tmp_path / "b" / "labels" / "test")
    found = guess(tmp_path / "b", 4)
    assert found.values["splits"] == {"folders": {"train": "train", "val": "val"}}
    (note,) = (line for line in found.edit if line.startswith("test: no labels"))
    assert "fastseg.predict" in note


@pytest.mark.parametrize("bands", [0, 1, 3])
def test_arrays_are_sensors(tmp_path, capsys, bands):
    root, out = tmp_path / "data", tmp_path / "mine.toml"
    write_own(root, "ids", {"train": 3, "val": 2}, ((16, 24),))
    (root / "range").mkdir()
    for path in sorted((root / "thermal").rglob("*.png")):
        target = root / "range" / path.relative_to(root / "thermal").with_suffix(".npy")
        target.parent.mkdir(exist_ok=True)
        shape = (16, 24, bands) if bands else (16, 24)
        np.save(target, np.full(shape, 3.5, np.float32))
    shutil.rmtree(root / "thermal")
    assert data.main(["describe", "--root", str(root), "--out", str(out)]) == 0
    capsys.readouterr()
    spec = get_dataset(str(out))
    (arrays,) = (m for m in spec.modalities if m.name == "range")
    assert set(arrays.mean) == {3.5}
    checked = ["--data.dataset", str(out), "--data.root", str(root), "--workers", "1"]
    assert data.main(["check", *checked]) == 0
    assert "no faults" in capsys.readouterr().out
