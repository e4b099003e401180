"""Listing folders without passing over those that cannot be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import translate
from pathlib import Path

from ..errors import DataError


def matching(root: Path, pattern: str) -> Iterator[str]:
    """Paths under ``root`` that match a pattern, ``*`` standing for anything within a component.

    Unlike ``Path.glob`` it refuses folders that cannot be read: their samples would be left out.

    Raises:
        DataError: a folder is there and cannot be listed.
    """
    return _matching(str(root), "", pattern.split("/"))


def refuse_closed(path: Path) -> None:
    """Raise if a folder seems to be missing only because one above it is closed.

    Raises:
        DataError: the folder may be there.
    """
    try:
        os.stat(path)
    except PermissionError as error:
        raise closed(path, error) from None
    except OSError:
        return


def closed(path: str | Path, error: OSError) -> DataError:
    """The error for a folder that cannot be listed or entered."""
    denied = isinstance(error, PermissionError)
    remedy = (
        "it may be there all the same. Ask its owner for the right to read and enter it (chmod "
        "u+rx, or g+rx for a group), or run as another user"
        if denied
        else "look at the disk or the network"
    )
    return DataError(f"cannot read the folder {path}: {error.strerror}; {remedy}", "unreadable")


def _matching(root: str, under: str, parts: list[str]) -> Iterator[str]:
    first, *rest = parts
    if "*" not in first:
        if rest:
            yield from _matching(root, f"{under}{first}/", rest)
        elif os.path.lexists(f"{root}/{under}{first}"):
            yield f"{under}{first}"
        return
    fits = re.compile(translate(first)).match
    place = f"{root}/{under}" if under else root
    try:
        with os.scandir(place) as found:
            entries = [entry for entry in found if fits(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise closed(place.rstrip("/"), error) from error
    for entry in entries:
        if not rest:
            yield f"{under}{entry.name}"
        elif entry.is_dir():
            yield from _matching(root, f"{under}{entry.name}/", rest)
