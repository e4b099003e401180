"""Files that appear whole or not at all: text, leftovers, folders that cannot be waited for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fastseg.pipelines.tools import whole_files
from fastseg.pipelines.tools.whole_files import unfinished, write_whole


def test_text_is_written_as_utf8_into_folders_that_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "name"
    write_whole(path, "Straße\n")
    assert path.read_bytes() == "Straße\n".encode()


@pytest.mark.parametrize("durable", [True, False])
def test_what_a_killed_writer_leaves_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"content", durable)
    (left,) = unfinished(tmp_path)
    assert left.read_bytes() == b"content"
    # hidden, so that no data set takes it for a sample
    assert left.name.startswith(".file.")


def test_an_old_leftover_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.json.partial").write_text("{")
    assert unfinished(tmp_path) == [tmp_path / "config.json.partial"]


@pytest.mark.parametrize(
    ("number", "written"), [(errno.EINVAL, True), (errno.EACCES, True), (errno.EIO, False)]
)
def test_folders_that_cannot_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, written: bool
) -> None:
    wait = whole_files.sync

    def refuse(path: Path) -> None:
        if path == tmp_path:
            raise OSError(number, os.strerror(number))
        wait(path)

    monkeypatch.setattr(whole_files, "sync", refuse)
    path = tmp_path / "file"
    if written:
        write_whole(path, b"content")
    else:
        with pytest.raises(OSError, match="Input/output error") as caught:
            write_whole(path, b"content")
        assert caught.value.filename == str(path)
    assert path.read_bytes() == b"content"
