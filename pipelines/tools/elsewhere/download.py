"""Files from elsewhere: fetched whole and verified, or not there."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...errors import DataError
from ..progress import Progress
from ..reading import check_regular

_BLOCK = 1 << 20
_TIMEOUT_S = 60


def fetch(url: str, out: Path, sha256: str, progress: bool = True) -> Path:
    """Download a file; it has its name only once its hash is right.

    Args:
        url: https; http of this machine alone, where nobody stands in between.
        out: name of the file; one that is there and has the hash is kept.
        sha256: expected hash, 64 hexadecimal digits.
        progress: show a bar.

    Raises:
        DataError: the address or the hash has no form, the server does not answer, the content is
            another one, or another file has the name.
    """
    if not _is_safe(url):
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


def _is_safe(url: str) -> bool:
    try:
        parts = urlsplit(url)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and local)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows addresses that could have been asked for, and no others."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if not _is_safe(newurl):
            raise ValueError(f"it leads to {newurl!r}, which does not start with https://")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, partial: Path, progress: bool) -> str:
    """Write the content and return its hash."""
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.build_opener(_Redirects).open(url, timeout=_TIMEOUT_S) as response,
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
