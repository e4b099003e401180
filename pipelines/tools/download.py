"""Archives from elsewhere: fetched whole and verified, unpacked without trusting their names."""

from __future__ import annotations

import filecmp
import hashlib
import lzma
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from ..errors import DataError
from .progress import Progress
from .reading import check_regular

_BLOCK = 1 << 20
_TIMEOUT_S = 60
_RATIO = 100
"""Images do not shrink to a hundredth; what unpacks to more is a bomb."""
_HARMLESS_BYTES = 64 << 20
"""Archives that unpack to less may have any ratio."""
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
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


def fetch(url: str, out: Path, sha256: str, progress: bool = True) -> Path:
    """Download a file; it has its name only once its hash is right.

    Args:
        url: http or https.
        out: name of the file; one that is there and has the hash is kept.
        sha256: expected hash, 64 hexadecimal digits.
        progress: show a bar.

    Raises:
        DataError: the address or the hash has no form, the server does not answer, the content is
            another one, or another file has the name.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"cannot fetch {url!r}: expected an address that starts with https://")
    wanted = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise DataError(
            f"{sha256!r} is no SHA-256, which has 64 hexadecimal digits; it is published beside "
            "the file, or printed by sha256sum for a copy you trust"
        )
    check_regular(out)
    if out.exists():
        found = _hash_of(out)
        if found != wanted:
            raise DataError(
                f"{out} is there and has SHA-256 {found}, not {wanted}; remove it, or choose "
                "another name"
            )
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        found = _download(url, partial, progress)
        if found != wanted:
            raise DataError(
                f"{url} has SHA-256 {found}, not {wanted}: the download is damaged or another "
                "file; it was removed. Try again, and if it stays so, compare with the publisher",
                "damaged",
            )
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return out


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
        with Progress(
            f"unpacking {archive.name}", len(members), shown=progress, unit="file"
        ) as shown:
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


def _download(url: str, partial: Path, progress: bool) -> str:
    """Write the content and return its hash."""
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
            partial.open("wb") as file,
            Progress(
                partial.name,
                int(response.headers.get("Content-Length") or 0) >> 20,
                shown=progress,
                unit="MiB",
            ) as shown,
        ):
            while block := response.read(_BLOCK):
                digest.update(block)
                file.write(block)
                shown.advance(len(block) / _BLOCK)
            file.flush()
            os.fsync(file.fileno())
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"cannot fetch {url}: {reason}; nothing was kept. Check the address, or fetch it with "
            "a browser and unpack the file"
        ) from error
    return digest.hexdigest()


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
            with tarfile.open(archive) as file:
                for item in file:
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


def _check_sizes(archive: Path, out: Path, members: list[Member]) -> None:
    total, packed = sum(member.size for member in members), archive.stat().st_size
    if total > max(_HARMLESS_BYTES, _RATIO * packed):
        raise _unsafe(archive, f"its {packed} bytes unpack to {total}")
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
        with tarfile.open(archive) as file:
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
    if isinstance(error, OSError) and error.errno is not None:
        return error  # of the disk, not of the archive
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"{archive} is damaged or no archive that can be read ({reason}); fetch it again", "damaged"
    )
