"""A first description that is guessed from a folder."""

import shutil

import pytest

from fastseg import data
from fastseg.pipelines import DataError, get_dataset
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
