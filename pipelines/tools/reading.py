"""Whole files, read without waiting on what is no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError

_SPECIAL = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "device"),
)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read, or is a folder, pipe, socket or device.
    """
    with _opened(path) as file:
        return file.read()


def read_ends(path: Path, head: int, tail: int) -> tuple[bytes, bytes]:
    """The first ``head`` and the last ``tail`` bytes; of a shorter file all of it, and nothing.

    Raises:
        DataError: as ``read_bytes``.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= head + tail:
            return file.read(), b""
        first = file.read(head)
        file.seek(size - tail)
        return first, file.read()


def check_regular(path: Path, state: os.stat_result | None = None) -> None:
    """Refuse a path that is there but no file: reading a pipe would wait for a writer.

    Args:
        path: a file, or a link to one; one that is not there is left to whoever opens it.
        state: of the path, if it is known.

    Raises:
        DataError: it is a folder, pipe, socket or device.
    """
    try:
        mode = (os.stat(path) if state is None else state).st_mode
    except OSError:
        return
    for holds, kind in _SPECIAL:
        if holds(mode):
            raise DataError(
                f"{path} is a {kind}, expected a file; put the file that belongs here in its place",
                "special",
            )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            check_regular(path, os.fstat(file.fileno()))
            yield file
    except OSError as error:
        check_regular(path)
        denied = isinstance(error, PermissionError)
        remedy = "ask for the right to read it" if denied else "restore it"
        raise DataError(f"cannot read {path}: {error.strerror}; {remedy}", "missing") from error


def _open_at_once(path: str, flags: int) -> int:
    # a pipe without a writer opens at once with this flag; files do not know it
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
