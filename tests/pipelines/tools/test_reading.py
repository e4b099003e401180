"""What is no file, in the place of one: refused by name, and never waited for."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastseg.pipelines import DataConfig, DataError, get_dataset
from fastseg.pipelines.cache.write import pack_split
from fastseg.pipelines.datasets.list_files import read_list
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.decode.muses_raw import read_events
from fastseg.pipelines.inspection.check import check_dataset
from fastseg.pipelines.projection.calibration import read_json
from fastseg.pipelines.projection.motion import read_gnss
from fastseg.pipelines.tools.elsewhere.archives import unpack
from fastseg.pipelines.tools.elsewhere.download import fetch
from fastseg.pipelines.tools.reading import read_bytes
from tests.support.loader_cases import LOADERS, Open


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """A test that waits for a pipe ends."""

    def give_up(*_: object) -> None:
        pytest.fail("waits for a pipe")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "named pipe": os.mkfifo,
    "folder": Path.mkdir,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "device": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    SPECIAL[kind](path)
    with pytest.raises(DataError, match=f"a.png is a {kind}, expected a file") as caught:
        read_bytes(path)
    assert caught.value.kind == "special"


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_bytes(tmp_path / "b") == b"content"


READERS: dict[str, Callable[[Path], object]] = {
    "calib.json": read_json,
    "gnss.txt": read_gnss,
    "events.h5": read_events,
    "list_folder/val.txt": lambda path: read_list(get_dataset("mcubes"), path.parents[1], "val"),
    "a.zip": lambda path: unpack(path, path.parent / "out", progress=False),
    "b.zip": lambda path: fetch("https://localhost/b.zip", path, "0" * 64, progress=False),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_a_pipe(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    if name.endswith(".h5"):
        pytest.importorskip("h5py")
    with pytest.raises(DataError, match="is a named pipe, expected a file") as caught:
        READERS[name](path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("folder", ["img", "semantic"])
def test_a_pipe_in_a_data_set_is_named(deliver_tree: Path, tmp_path: Path, folder: str) -> None:
    path = max(deliver_tree.glob(f"{folder}/*/val/*/*.png"))
    path.unlink()
    os.mkfifo(path)
    spec = get_dataset("deliver")
    (fault,) = check_dataset(spec, deliver_tree, workers=1, progress=False).faults
    assert (fault.kind, str(path) in fault.message) == ("special", True)
    with pytest.raises(DataError, match="is a named pipe"):
        pack_split(list_split(spec, deliver_tree, "val"), tmp_path / "packed", progress=False)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_names_a_pipe(deliver_tree: Path, open_loader: Open, loader: str) -> None:
    path = max(deliver_tree.glob("img/*/val/*/*.png"))
    config = DataConfig(root=deliver_tree, size=64, eval_batch_size=2, workers=0, loader=loader)
    opened = open_loader(config, train=False)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a named pipe") as caught:
        list(opened.batches())
    assert str(path) in str(caught.value)
