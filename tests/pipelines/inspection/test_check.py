"""``python -m fastseg.data check``: every fault of a tree, each with file, value and remedy."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg import data
from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.inspection.check import CheckReport, check_dataset, summarise
from tests.support import dataset_trees as trees

REPO = Path(__file__).parents[3]


def check(name: str, root: Path, **options: object) -> CheckReport:
    return check_dataset(get_dataset(name), root, progress=False, **options)


def test_sound_trees_have_no_faults(
    deliver_tree: Path, mcubes_tree: Path, muses_tree: Path
) -> None:
    deliver = check("deliver", deliver_tree)
    assert deliver.faults == []
    train = deliver.splits["train"]
    assert (train.samples, train.published, train.sizes) == (16, 3983, {"64 x 64": 16})
    assert train.conditions == {"cloud": 4, "night": 4, "rain": 4, "sun": 4}
    assert train.cases == {"eventlowres": 4, "normal": 8, "overexposure": 4}
    assert [note.message for note in deliver.notes] == ["split 'test' is not there"]

    mcubes = check("mcubes-masked", mcubes_tree)
    assert (mcubes.faults, mcubes.notes) == ([], [])
    assert {name: split.samples for name, split in mcubes.splits.items()} == trees.MATERIALS
    assert mcubes.splits["val"].sizes == {"64 x 32": 2}  # without the columns that are cut off

    muses = check("muses", muses_tree, modalities=("lidar", "radar"))
    assert muses.faults == []
    assert muses.splits["train"].conditions == {"clear/day": 2, "rain/night": 2, "snow/day": 2}


def deliver_file(root: Path, folder: str, tag: str) -> Path:
    return root / f"{folder}/night/train/MAP_2_point7/000001_{tag}_front.png"


def spoil_png(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    trees.save(path, change(np.array(Image.open(path))))


def raised(pixels: np.ndarray, value: int) -> np.ndarray:
    pixels = pixels.copy()
    pixels[5:7, 6, 0] = value
    return pixels


# kind -> how, file, what the message must say besides the file
FAULTS: dict[str, tuple[str, str, Callable[[Path], None], tuple[str, ...]]] = {
    "gone": ("hha", "depth", Path.unlink, ("does not exist", "Restore it")),
    "torn": (
        *("img", "rgb", lambda p: p.write_bytes(p.read_bytes()[:-900])),
        ("damaged", "bytes", "fetch this file again"),
    ),
    "html": (
        *("img", "rgb", lambda p: p.write_text("<html>404</html>")),
        ("no image (16 bytes", "fetch this file again"),
    ),
    "zeros": (
        *("lidar", "lidar", lambda p: p.write_bytes(bytes(500))),
        ("no image (500 bytes", "fetch this file again"),
    ),
    "small": (
        *("hha", "depth", lambda p: spoil_png(p, lambda x: x[:40, :32])),
        ("is 32 x 40 pixels, its label is 64 x 64", "resize it"),
    ),
    "deep": (
        *("lidar", "lidar", lambda p: spoil_png(p, lambda x: x.astype(np.uint16) * 257)),
        ("16 bits per channel", "expected 8-bit", "Convert it to 8 bit"),
    ),
    "label 26": (
        *("semantic", "semantic", lambda p: spoil_png(p, lambda x: raised(x, 26))),
        ("label value 26", "0-25, 255", "25 classes", "2 pixels", "off by one"),
    ),
    "label 200": (
        *("semantic", "semantic", lambda p: spoil_png(p, lambda x: raised(x, 200))),
        ("label value 200", "another id convention"),
    ),
    "label 16 bit": (
        *("semantic", "semantic", lambda p: spoil_png(p, lambda x: x[..., 0].astype(np.uint16))),
        ("16 bits per channel", "Convert it to 8 bit"),
    ),
    "label palette": (
        *("semantic", "semantic"),
        lambda p: Image.fromarray(np.array(Image.open(p))[..., 0]).convert("P").save(p),
        ("palette PNG", "Image.fromarray(numpy.array(Image.open(path)))"),
    ),
}


@pytest.mark.fault("F5", "F6", "F7", "F8", "F10")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_remedy(deliver_tree: Path, fault: str) -> None:
    folder, tag, spoil, words = FAULTS[fault]
    path = deliver_file(deliver_tree, folder, tag)
    spoil(path)
    (finding,) = check("deliver", deliver_tree).faults
    for word in (str(path), *words):
        assert word in finding.message
    assert (finding.split, finding.sample) == ("train", "night/train/MAP_2_point7/000001")
    assert finding.part == {"hha": "depth", "semantic": "label"}.get(folder, folder)


def test_all_faults_are_collected(
    deliver_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = []
    scenes = ("cloud/train/MAP_1_point2", "night/train/MAP_2_point7")
    names = [f"{scene}/{frame:06d}" for scene in scenes for frame in range(4)]
    faults = ["gone", "torn", "small", "deep", "label 26", "label palette"]
    for name, fault in zip(names, faults, strict=False):
        folder, tag, spoil, _ = FAULTS[fault]
        spoilt.append(deliver_tree / f"{folder}/{name}_{tag}_front.png")
        spoil(spoilt[-1])
    # a sample with three faults, and one whose label is broken and an image of another size
    for folder, tag, fault in (("img", "rgb", "torn"), ("hha", "depth", "small")):
        spoilt.append(deliver_tree / f"{folder}/{names[6]}_{tag}_front.png")
        FAULTS[fault][2](spoilt[-1])
    before = {p: p.read_bytes() for p in deliver_tree.rglob("*") if p.is_file()}
    out = tmp_path / "out" / "report.json"
    command = ["check", "--data.root", str(deliver_tree), "--json", str(out), "--workers", "1"]
    assert data.main(command) == 2
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["ok"] is False
    assert len(report["faults"]) == len(spoilt) == 8
    for path in spoilt:
        assert str(path) in printed
        assert sum(str(path) in fault["message"] for fault in report["faults"]) == 1
    assert "8 faults (" in printed
    kinds = sorted(fault["kind"] for fault in report["faults"])
    assert kinds == [
        *["damaged", "damaged", "depth", "depth", "label", "missing", "size", "size"],
    ]
    assert [p.name for p in out.parent.iterdir()] == ["report.json"]  # nothing half-written
    assert before == {p: p.read_bytes() for p in deliver_tree.rglob("*") if p.is_file()}


@pytest.mark.fault("F5")
def test_long_summaries_are_cut(deliver_tree: Path) -> None:
    for folder in ("event", "hha"):
        for path in sorted(deliver_tree.glob(f"{folder}/*/train/*/*.png"))[1:]:
            path.unlink()
    report = check("deliver", deliver_tree)
    assert len(report.faults) == 30
    text = summarise(report)
    assert text.count("does not exist") == 20
    assert "30 faults (missing 30)" in text
    assert "and 10 more; --json FILE" in text


def test_a_modality_that_is_not_there_at_all_is_one_fault(deliver_tree: Path) -> None:
    shutil.rmtree(deliver_tree / "hha")
    faults = check("deliver", deliver_tree).faults
    assert [(fault.split, fault.part, fault.sample) for fault in faults] == [
        ("train", "depth", ""),
        ("val", "depth", ""),
    ]
    first = deliver_tree / "hha/cloud/train/MAP_1_point2/000000_depth_front.png"
    assert f"all 16 files of split 'train' are missing, such as {first}. " in faults[0].message
    assert "leave the modality out" in faults[0].message


def test_withheld_labels_are_a_note(muses_tree: Path) -> None:
    shutil.rmtree(muses_tree / "gt_semantic/val")
    report = check("muses", muses_tree)
    assert report.faults == []
    assert "label: all 4 files of split 'val' are missing" in report.notes[0].message
    assert "neither trained on nor scored" in report.notes[0].message
    assert len(check("muses", muses_tree, splits=("val",)).faults) == 1


@pytest.mark.fault("F9", "F12")
def test_blank_images_and_ignored_labels_are_notes(deliver_tree: Path) -> None:
    lidar, label = (deliver_file(deliver_tree, f, f) for f in ("lidar", "semantic"))
    spoil_png(lidar, lambda x: x * 0)
    spoil_png(label, lambda x: x * 0)
    report = check("deliver", deliver_tree)
    assert report.faults == []
    messages = [note.message for note in report.notes if note.kind == "blank"]
    assert messages == [
        f"{label}: every pixel is ignored; nothing is learnt from it",
        f"{lidar}: nothing but one value",
    ]


def test_strange_conditions_are_faults(deliver_tree: Path) -> None:
    for folder in ("img", "hha", "event", "lidar", "semantic"):
        (deliver_tree / folder / "fog").rename(deliver_tree / folder / "fogg")
    report = check("deliver", deliver_tree)
    assert len(report.faults) == 3  # one per sample
    assert "unknown condition of deliver: 'fogg'; did you mean 'fog'?" in report.faults[0].message
    assert "Rename the folder" in report.faults[0].message


def test_float_files_are_checked(mcubes_tree: Path) -> None:
    stem = "outscene1208_train_0000000001"
    nan, torn, other = (mcubes_tree / f"polL_{k}/{stem}.npy" for k in ("dolp", "aolp_sin", "dolp"))
    values = np.load(nan)
    values[0, 200:203] = np.nan
    np.save(nan, values)
    torn.write_bytes(torn.read_bytes()[:-7])
    other = mcubes_tree / "polL_aolp_cos/outscene1208_test_0000000000.npy"
    np.save(other, np.load(other)[:-2])
    mask = mcubes_tree / "NIR_warped_mask/outscene1208_val_0000000000.png"
    spoil_png(mask, lambda x: x[:, :-1])
    narrow = mcubes_tree / "GT/outscene1208_val_0000000001.png"
    spoil_png(narrow, lambda x: x[:, :192])
    report = check("mcubes-masked", mcubes_tree)
    messages = "\n".join(fault.message for fault in report.faults)
    assert f"{nan}: 3 of 8192 values are not finite" in messages
    assert f"{torn} is damaged" in messages
    assert f"{other} is 256 x 30, but " in messages
    assert f"{mask} is 63 x 32 pixels, its label is 64 x 32" in messages
    assert f"{narrow} is 192 pixels wide, but mcubes-masked leaves out the first 192" in messages
    assert len(report.faults) == 5


def test_muses_depth_is_checked(muses_tree: Path) -> None:
    scene = "train/clear/day/REC0000_frame_000000"
    path = muses_tree / f"projected_to_rgb/lidar/{scene}_lidar.png"
    trees.save(path, np.zeros((*trees.FRAME, 3)))
    (fault,) = check("muses", muses_tree).faults
    assert fault.kind == "depth"
    assert f"{path} has 8 bits per channel (mode RGB); expected 16-bit" in fault.message
    assert "from its source" in fault.message


def test_splits_that_are_asked_for_must_be_there(deliver_tree: Path) -> None:
    report = check("deliver", deliver_tree, splits=("val", "test"))
    assert list(report.splits) == ["val"]
    assert "no sample of split 'test'" in report.faults[0].message
    with pytest.raises(DataError, match="did you mean 'val'"):
        check("deliver", deliver_tree, splits=("vall",))
    with pytest.raises(DataError, match="no sample of split 'train'"):
        check("deliver", deliver_tree / "img")


def test_a_bad_list_is_a_fault(mcubes_tree: Path) -> None:
    path = mcubes_tree / "list_folder/val.txt"
    path.write_text(path.read_text() * 2)
    (fault,) = check("mcubes", mcubes_tree).faults
    assert f"{path} names outscene1208_val_0000000000 in lines 1 and 3" in fault.message


@pytest.mark.parametrize("root", ["nowhere", "empty"])
def test_no_data_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert data.main(["check", "--root", str(tmp_path / root), "--dataset", "mcubes"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert str(tmp_path / root) in printed.err
    assert "--data.root" in printed.err
    assert printed.out == ""


def test_work_and_results_can_cross_processes(
    deliver_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the pool itself is tested with the synthetic set; here, that nothing is lost on the way
    FAULTS["torn"][2](deliver_file(deliver_tree, "img", "rgb"))
    FAULTS["small"][2](deliver_tree / "hha/cloud/train/MAP_1_point2/000003_depth_front.png")
    alone = check("deliver", deliver_tree)

    def each(function, items, processes):
        done = [pickle.loads(pickle.dumps(function))(item) for item in reversed(items)]
        return pickle.loads(pickle.dumps(done))

    monkeypatch.setattr("fastseg.pipelines.inspection.check.each", each)
    assert check("deliver", deliver_tree, workers=2) == alone


def test_the_bar_survives_a_pipe(deliver_tree: Path) -> None:
    command = [sys.executable, "-m", "fastseg.data", "check", "--root", str(deliver_tree)]
    done = subprocess.run(
        command,
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("no faults")
    bars = [line for line in done.stderr.replace("\r", "\n").split("\n") if line]
    assert len(bars) <= 3  # not one per sample
    assert "22/22" in bars[-1]
