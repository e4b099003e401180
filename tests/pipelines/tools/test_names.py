"""Names that are not UTF-8, locales that are not, byte order marks, spaces, closed folders."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastseg import data
from fastseg.pipelines import CorruptionConfig, DataConfig, DataError, build_loader, get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.inspection.check import check_dataset
from fastseg.pipelines.projection.calibration import read_json
from fastseg.pipelines.tools.names import local, name_bytes, portable, readable
from fastseg.report.contact_sheet import draw_sheet

REPO = Path(__file__).parents[3]
DELIVER, MCUBES = get_dataset("deliver"), get_dataset("mcubes")
MARK = b"\xef\xbb\xbf"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FINGERPRINT = """
import sys
from pathlib import Path
from fastseg.pipelines import get_dataset
from fastseg.pipelines.datasets.split_files import list_split
print(list_split(get_dataset("deliver"), Path(sys.argv[1]), "val").fingerprint)
"""


def rename_scenes(root: Path, new: bytes) -> None:
    for folder in [*root.glob("*/*/*/MAP_*")]:
        name = os.fsencode(folder.name).replace(b"MAP", new)
        os.rename(folder, os.path.join(os.fsencode(folder.parent), name))


def test_names_are_bytes_whatever_the_locale_says() -> None:
    odd = os.fsdecode(b"caf\xe9/\xc3\xa9")
    assert name_bytes(odd) == b"caf\xe9/\xc3\xa9"
    assert readable(odd) == "caf\\xe9/é"
    assert local(json.loads(json.dumps(portable(odd)))) == odd
    assert portable("é") == readable("é") == "é"


def test_names_that_are_not_utf8_are_loaded_measured_drawn_and_packed(
    deliver_tree: Path, tmp_path: Path
) -> None:
    rename_scenes(deliver_tree, b"CAF\xe9")
    report = tmp_path / "check.json"
    common = ["--root", str(deliver_tree), "--workers", "1"]
    assert data.main(["check", *common, "--json", str(report)]) == 0
    assert data.main(["stats", *common, "--out", str(tmp_path / "stats.json")]) == 0
    assert data.main(["show", *common, "--out", str(tmp_path / "show.png")]) == 0
    assert data.main(["pack", *common]) == 0
    noisy = CorruptionConfig(blackout=1, modalities=("img",))
    config = DataConfig(root=deliver_tree, size=64, batch_size=4, workers=0, loader="torch")
    loader = build_loader(config, train=True)
    assert "packed in" in loader.reason
    (first,) = loader.batches(0, 1)
    assert any("CAF\udce9" in sample_id for sample_id in first.sample_ids)
    faulty = DataConfig(root=deliver_tree, size=64, workers=0, eval_corruption=noisy)
    next(build_loader(faulty, train=False).batches())


def test_the_fingerprint_is_that_of_the_bytes_under_every_locale(deliver_tree: Path) -> None:
    rename_scenes(deliver_tree, "CAFé".encode())
    files = list_split(DELIVER, deliver_tree, "val")
    # as versions before hashed it, so that their states resume
    assert files.fingerprint == hashlib.sha256("\n".join(files.sample_ids).encode()).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", FINGERPRINT, str(deliver_tree)],
        env=os.environ | ASCII | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == files.fingerprint


def test_a_sheet_shows_a_name_that_is_not_utf8(deliver_tree: Path) -> None:
    rename_scenes(deliver_tree, b"CAF\xe9")
    assert draw_sheet(list_split(DELIVER, deliver_tree, "val"), 0, 64).width > 64


def test_a_byte_order_mark_is_no_part_of_a_list_or_of_json(
    mcubes_tree: Path, tmp_path: Path
) -> None:
    before = list_split(MCUBES, mcubes_tree, "train")
    path = mcubes_tree / "list_folder/train.txt"
    path.write_bytes(MARK + path.read_bytes().replace(b"\n", b"\r\n"))
    assert list_split(MCUBES, mcubes_tree, "train").sample_ids == before.sample_ids
    calibration = tmp_path / "calib.json"
    calibration.write_bytes(MARK + b'{"intrinsics": 1}')
    assert read_json(calibration) == {"intrinsics": 1}


def test_a_list_of_two_bytes_per_letter_is_refused(mcubes_tree: Path) -> None:
    path = mcubes_tree / "list_folder/train.txt"
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(DataError, match=r"train\.txt.*it is not UTF-8 text"):
        list_split(MCUBES, mcubes_tree, "train")


def test_names_in_a_list_may_have_spaces_or_columns_behind_them(mcubes_tree: Path) -> None:
    path = mcubes_tree / "list_folder/train.txt"
    first, second, *rest = path.read_text().split()
    for file in mcubes_tree.glob(f"*/{first}.*"):
        file.rename(file.with_name(f"in the street{file.suffix}"))
    path.write_text("\n".join(["in the street", f"{second} 7", f"{rest[0]}\t8"]) + "\n")
    files = list_split(MCUBES, mcubes_tree, "train")
    assert files.sample_ids == ("in the street", second, rest[0])
    path.write_text("in a park\n")
    with pytest.raises(DataError, match=r"train\.txt: up to the first space of each line, or the"):
        list_split(MCUBES, mcubes_tree, "train")


def test_a_folder_that_cannot_be_read_is_not_missing(
    deliver_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = deliver_tree / "img" / "fog" / "val"
    plain = os.scandir

    # root reads what it likes, so the system's refusal is played
    def refuse(path: str) -> object:
        if str(path).rstrip("/") == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", refuse)
    match = rf"cannot read the folder {closed}: Permission denied; .*chmod"
    with pytest.raises(DataError, match=match):
        list_split(DELIVER, deliver_tree, "val")
    faults = check_dataset(DELIVER, deliver_tree, progress=False).faults
    assert all("Permission denied" in fault.message for fault in faults)
    assert faults


CLOSED = """
import os, sys
from pathlib import Path
from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.datasets.split_files import list_split
os.seteuid(65534)
try:
    list_split(get_dataset("deliver"), Path(sys.argv[1]), "val")
except DataError as error:
    print(error)
"""


def test_a_root_in_a_closed_folder_is_not_missing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    root = tmp_path / "closed" / "deliver"
    root.mkdir(parents=True)
    root.parent.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(root)],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"cannot read the folder {root}: Permission denied" in done.stdout
