"""Descriptions on disk, and those that a run or its weights keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from ...tools.settings import as_path
from ...tools.toml_files import read_toml
from .description import Description, digest
from .reading import read_description

SUFFIX = ".toml"
FILE, HASH = "file", "sha256"
"""Keys of a kept description beside those of the file: where it was, and the `digest` of the
rest."""


def is_described(dataset: str) -> bool:
    """True if the name of a data set is the path of a description."""
    return dataset.lower().endswith(SUFFIX)


def read_file(dataset: str) -> Description:
    """The description in a file.

    Raises:
        DataError: it cannot be read, or is no description.
    """
    try:
        path = as_path(dataset)
    except ValueError as error:
        raise DataError(f"--data.dataset: {error}", "toml") from None
    if not path.exists():
        raise DataError(
            f"there is no file {path}: --data.dataset takes the name of a data set or a {SUFFIX} "
            "file of yours; python -m fastseg.data describe --root DIR --out FILE writes a first "
            "one",
            "toml",
        )
    return read_description(read_toml(path), str(path), path.stem)


def keep(dataset: str) -> dict[str, Any]:
    """The description in a file as a run keeps it: plain, with the file's path and a hash."""
    plain = read_file(dataset).plain()
    return {FILE: dataset, HASH: digest(plain), **plain}


def plain_of(kept: Mapping[str, Any]) -> dict[str, Any]:
    """A kept description without what tells where it came from."""
    return {key: value for key, value in kept.items() if key not in (FILE, HASH)}


def read_kept(kept: Mapping[str, Any]) -> Description:
    """The description that a run keeps.

    Raises:
        DataError: it is not what was written.
    """
    plain = plain_of(kept)
    file = f"the description of {kept.get(FILE)} that the run keeps"
    if kept.get(HASH) != digest(plain):
        raise DataError(
            f"{file} was changed: it is not that of its hash. Restore config.json or the weights "
            "from a copy",
            "toml",
        )
    return read_description(plain, file, "")
