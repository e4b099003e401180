"""What is around the files: links, names, rights, full disks, folders one level off."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastseg import data
from fastseg.pipelines import DataConfig, DataError, build_loader, get_dataset
from fastseg.pipelines.cache import write as pack
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.inspection.check import check_dataset
from fastseg.pipelines.tools.whole_files import write_whole
from tests.support import dataset_trees as trees

REPO = Path(__file__).parents[3]


def run(*arguments: object) -> int:
    return data.main([*map(str, arguments), "--workers", "1"])


def leftovers(root: Path) -> list[str]:
    return [p.name for p in root.rglob("*") if p.suffix in (".partial", ".tmp")]


def test_a_link_to_nowhere_is_a_fault(deliver_tree: Path) -> None:
    victim = min(deliver_tree.glob("img/*/train/*/*.png"))
    victim.unlink()
    victim.symlink_to(deliver_tree / "nowhere.png")
    (fault,) = check_dataset(get_dataset("deliver"), deliver_tree, progress=False).faults
    assert f"cannot read {victim}: No such file or directory; restore it" in fault.message
    with pytest.raises(DataError, match="cannot read"):
        build_loader(DataConfig(root=deliver_tree, size=64, loader="torch"), train=True)


def test_linked_folders_files_and_roots_are_followed(deliver_tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (deliver_tree / "hha").rename(elsewhere)
    (deliver_tree / "hha").symlink_to(elsewhere)
    image = min(deliver_tree.glob("img/*/train/*/*.png"))
    image.rename(tmp_path / "image.png")
    image.symlink_to(tmp_path / "image.png")
    root = tmp_path / "link"
    root.symlink_to(deliver_tree)
    assert check_dataset(get_dataset("deliver"), root, progress=False).faults == []
    assert run("pack", "--root", root, "--splits", "train") == 0


@pytest.mark.parametrize("kind", ["deliver", "mcubes"])
def test_another_suffix_is_pointed_out(tmp_path: Path, kind: str) -> None:
    write, pattern, new = {
        "deliver": (trees.write_deliver, "img/*/*/*/*.png", ".PNG"),
        "mcubes": (trees.write_mcubes, "polL_dolp/*.npy", ".npz"),
    }[kind]
    write(tmp_path)
    first = min(tmp_path.glob(pattern.replace("/*/*/*/", "/*/train/*/")))
    for path in tmp_path.glob(pattern):
        path.rename(path.with_suffix(new))
    faults = check_dataset(get_dataset(kind), tmp_path, progress=False).faults
    assert f"(there is {first.stem}{new})" in faults[0].message or kind == "mcubes"
    assert all(f"{new})" in fault.message for fault in faults)
    with pytest.raises(DataError, match=rf"\(there is .*\{new}\)"):
        list_split(get_dataset(kind), tmp_path, "train")


@pytest.mark.parametrize("where", ["above", "below"])
def test_a_root_one_level_off_is_pointed_out(deliver_tree: Path, where: str) -> None:
    root = deliver_tree.parent if where == "above" else deliver_tree / "img"
    with pytest.raises(DataError, match=r"Did you mean .*rain_sun_demo\? Check --data\.root"):
        list_split(get_dataset("deliver"), root, "train")
    with pytest.raises(DataError) as caught:
        list_split(get_dataset("deliver"), deliver_tree, "test")
    assert "Did you mean" not in str(caught.value)


def test_a_file_as_root(deliver_tree: Path) -> None:
    path = min(deliver_tree.glob("img/*/train/*/*.png"))
    with pytest.raises(DataError, match=r"it is a file\. Set --data\.root.*--out DIR"):
        list_split(get_dataset("deliver"), path, "train")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_letters_in_a_path(deliver_tree: Path, tmp_path: Path, encoding: str) -> None:
    root = tmp_path / "größe Ω データ"
    shutil.copytree(deliver_tree, root)
    for task in (["check", "--workers", "1"], ["show", "--out", str(root / "ß.png")]):
        done = subprocess.run(
            [sys.executable, "-m", "fastseg.data", *task, "--root", str(root)],
            env=os.environ | {"PYTHONPATH": str(REPO), "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (root / "ß.png").is_file()
    config = DataConfig(root=root, size=64, eval_batch_size=6, loader="torch", workers=0)
    assert len(next(build_loader(config, train=False).batches()).sample_ids) == 6


class FullDisk(io.FileIO):
    """Takes a thousand bytes."""

    room = 1000

    def write(self, content: bytes) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full(path: Path, mode: str = "r", *rest: object, **options: object) -> io.IOBase:
        if mode == "wb":
            return FullDisk(path, "w")
        return open(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", open_full)


@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_fills_up(deliver_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pack", "--root", deliver_tree, "--splits", "val") == 2
    arrays = deliver_tree / "packed/deliver/val/00000.bin"
    said = capsys.readouterr().err
    assert f"error: {arrays}: No space left on device; make room, or choose another disk" in said
    assert list(arrays.parent.iterdir()) == []
    assert run("show", "--root", deliver_tree, "--out", deliver_tree / "sheet.png") == 2
    said = capsys.readouterr().err
    assert f"error: {deliver_tree / 'sheet.png'}: No space left on device; make room" in said
    assert leftovers(deliver_tree) == []


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("durable", [True, False])
def test_files_appear_whole_or_not_at_all(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    write_whole(path, b"before", durable)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, bytes(2000), durable)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(deliver_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver_tree.chmod(0o555)
    try:
        assert run("pack", "--root", deliver_tree) == 2
    finally:
        deliver_tree.chmod(0o755)
    said = capsys.readouterr().err
    assert f"{deliver_tree / 'packed'}: Permission denied; choose another place" in said


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "choose another place with --out"),
        (errno.EACCES, "ask for the right to use this one"),
        (errno.ENOTDIR, "move away what stands there"),
    ],
)
def test_what_the_system_refuses_is_explained(
    deliver_tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    remedy: str,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/some/place")

    monkeypatch.setattr(pack, "_write", refuse)
    assert run("pack", "--root", deliver_tree, "--splits", "val") == 2
    said = capsys.readouterr().err
    assert f"error: /some/place: {os.strerror(number)}; " in said
    assert remedy in said
    assert "Errno" not in said
