"""Files that appear whole or not at all, also when the process or the machine dies."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_NO_WAITING = (errno.EACCES, errno.EBADF, errno.EINVAL)
"""Errors of systems that cannot wait for a folder, such as some on a network."""


def write_whole(path: Path, data: bytes | str, durable: bool = True) -> None:
    """Write under a temporary name in the same folder, then rename; missing folders are made.

    The temporary name is the process's own, so that several may write the same file: the last one
    stays.

    Args:
        path: path of the file.
        data: its content; text is written as UTF-8.
        durable: content and name are on the disk at the end, and the content first, so that not
            even a power cut leaves a file that is empty or cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        if durable:
            commit(partial, path)
        else:
            os.replace(partial, path)
    except OSError as error:
        # a full disk is reported without the name of the file, and ours tells nobody anything
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if partial.exists():
            partial.unlink()


def commit(partial: Path, final: Path) -> None:
    """Make a finished file or folder durable and give it its name."""
    sync(partial)
    os.replace(partial, final)
    try:
        sync(final.parent)
    except OSError as error:
        if error.errno not in _NO_WAITING:
            raise


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> str | None:
    """Remove a file, a folder or a link (not what it leads to); why not, if that fails."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"{error.filename or path}: {error.strerror or error}"
    return None


def unfinished(folder: Path) -> list[Path]:
    """Files and folders that killed writers left in a folder and below, links not followed.

    These are files and folders of ``write_whole`` and of training states (``*.partial``), and the
    temporary files that safetensors puts beside its target (``.tmp`` and six letters).
    """
    found = [*folder.rglob("*.partial"), *folder.rglob(".tmp??????")]
    return [path for path in found if not any(p in found for p in path.parents)]
