"""Archives from elsewhere, unpacked without trusting their names, links and sizes."""

from __future__ import annotations

import errno
import filecmp
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ...errors import DataError
from ..progress import Progress
from ..reading import check_regular

_BLOCK = 1 << 20
_RATIO = 100
"""Images do not shrink to a hundredth; what unpacks to more is a bomb."""
_HARMLESS_BYTES = 64 << 20
"""Archives that unpack to less may have any ratio."""
_LONGEST_NAME = 1 << 20
"""Bytes of a header that holds a name or other facts of a file."""
_IN_MEMORY = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class _LongName(Exception):
    """The header of a member says that its name has more bytes than names have."""


_DAMAGE = (
    _LongName,
    OSError,
    EOFError,
    RuntimeError,
    # a name in a ZIP that says it is UTF-8 and is not
    UnicodeDecodeError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    size: int


def unpack(archive: Path, out: Path, progress: bool = True) -> int:
    """Unpack a ZIP or TAR file into a folder, which may hold other files; returns their number.

    Everything is checked before anything is written, then unpacked beside its place, and moved
    there at the end. Files that are there with the same content stay.

    Raises:
        DataError: the archive is damaged, has names that leave the folder, links, devices or two
            files of one name, unpacks to a hundred times its size or more than the disk holds, or a
            file of another content is in the way. Nothing is left of it then.
    """
    check_regular(archive)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; choose another folder")
    members = _list_members(archive)
    _check_sizes(archive, out, members)
    out.mkdir(parents=True, exist_ok=True)
    staging = out / f".unpacking.{os.getpid()}"
    try:
        title = f"unpacking {archive.name}"
        with Progress(title, len(members), shown=progress, unit="file") as shown:
            for name, content in _contents(archive):
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file, _BLOCK)
                shown.advance()
        _refuse_conflicts(staging, out, members)
        for member in members:
            target = out / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / member.name, target)
    except _DAMAGE as error:
        raise _damaged(archive, error) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(members)


class _Header(tarfile.TarInfo):
    """The header of a member of a TAR file, whose long names have the length of names."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Header:
        found = super().frombuf(buf, encoding, errors)
        # tarfile reads these whole into memory, whatever size they state
        if found.type in _IN_MEMORY and found.size > _LONGEST_NAME:
            raise _LongName(f"a header of {found.size} bytes")
        return found


def _list_members(archive: Path) -> list[Member]:
    """The files of an archive, all of which are safe to write."""
    found: dict[str, Member] = {}
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    link = entry.external_attr >> 16 & 0o170000 not in (0, 0o100000, 0o040000)
                    name = entry.filename
                    # is_dir looks for a last character, which an empty name does not have
                    _accept(archive, found, name, entry.file_size, name.endswith("/"), link)
        else:
            with tarfile.open(archive, tarinfo=_Header) as file:
                total = 0
                for item in file:
                    # the next header lies behind all of this one's bytes, which are unpacked for it
                    total += item.size
                    _refuse_bomb(archive, total)
                    strange = not (item.isfile() or item.isdir())
                    _accept(archive, found, item.name, item.size, item.isdir(), strange)
    except _DAMAGE as error:
        raise _damaged(archive, error) from None
    if not found:
        raise DataError(f"{archive} holds no file; fetch it again", "damaged")
    for name in found:
        above = next((str(p) for p in PurePosixPath(name).parents if str(p) in found), None)
        if above is not None:
            raise _unsafe(archive, f"{above!r} is a file, and the folder of {name!r}")
    return list(found.values())


def _accept(
    archive: Path, found: dict[str, Member], name: str, size: int, folder: bool, strange: bool
) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise _unsafe(archive, f"{name!r} would be written outside of the folder")
    if not path.parts and not folder:
        raise _unsafe(archive, f"a file has the name {name!r}, which no file can have")
    if strange:
        raise _unsafe(archive, f"{name!r} is a link or device, not a file")
    if not folder:
        if str(path) in found:
            raise _unsafe(archive, f"{name!r} occurs twice")
        found[str(path)] = Member(str(path), size)


def _unsafe(archive: Path, reason: str) -> DataError:
    return DataError(
        f"{archive}: {reason}; nothing was unpacked. Do not use this archive, fetch the data set "
        "from where its authors publish it",
        "unsafe",
    )


def _refuse_bomb(archive: Path, total: int) -> None:
    packed = archive.stat().st_size
    if total > max(_HARMLESS_BYTES, _RATIO * packed):
        raise _unsafe(archive, f"its {packed} bytes unpack to {total}")


def _check_sizes(archive: Path, out: Path, members: list[Member]) -> None:
    total = sum(member.size for member in members)
    _refuse_bomb(archive, total)
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if total > free:
        raise DataError(
            f"{archive} unpacks to {total} bytes, but only {free} are free at {existing}; choose "
            "another disk"
        )


def _contents(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every file, checked again as it is read."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                if not entry.is_dir():
                    with file.open(entry) as content:
                        yield str(PurePosixPath(entry.filename)), content
    else:
        with tarfile.open(archive, tarinfo=_Header) as file:
            for item in file:
                if item.isfile():
                    stream = file.extractfile(item)
                    assert stream is not None
                    yield str(PurePosixPath(item.name)), stream


def _refuse_conflicts(staging: Path, out: Path, members: list[Member]) -> None:
    folders = {out / parent for m in members for parent in PurePosixPath(m.name).parents}
    for folder in sorted(folders):
        if os.path.lexists(folder) and not folder.is_dir():
            raise _in_the_way(folder, "and is no folder")
    for member in members:
        target = out / member.name
        same = target.is_file() and filecmp.cmp(staging / member.name, target, shallow=False)
        # also a link that leads nowhere is somebody's
        if os.path.lexists(target) and not same:
            raise _in_the_way(target, "with another content")


def _in_the_way(path: Path, how: str) -> DataError:
    return DataError(
        f"{path} is there {how}; nothing was unpacked. Remove it, or unpack into another folder"
    )


def _damaged(archive: Path, error: Exception) -> Exception:
    # EINVAL: the archive says that a part of it begins before its first byte
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return error  # of the disk, not of the archive
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"{archive} is damaged or no archive that can be read ({reason}); fetch it again", "damaged"
    )
