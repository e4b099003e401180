"""The manifest: says what a folder holds, guards it against other settings, marks it finished."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import DataError
from ..tools.json_values import json_values
from ..tools.whole_files import write_whole
from .catalogue import CLASS_ID
from .config import SPLITS, SyntheticConfig
from .plan import Frame
from .rng import VERSION
from .writer import Record

NAME: Final = "manifest.json"
STARTED: Final = "manifest.partial.json"
"""Holds the settings only, from the first frame until the manifest replaces it."""
DATASET: Final = "fastseg synthetic"


def shown_name(name: str, root: Path) -> str:
    """Name of a data set for people: its spec's name, or that its scenes are synthetic.

    Args:
        name: name of the spec that ``root`` is read by.
        root: folder of the data set, whole or still being rendered.
    """
    for manifest in (NAME, STARTED):
        # a file of another origin may have the name, and anything in it
        with suppress(OSError, DataError):
            if (_read(root / manifest) or {}).get("dataset") == DATASET:
                return f"synthetic scenes ({name} layout)"
    return name


def foreign_file(out: Path) -> Path | None:
    """Something in a folder that is no synthetic set; None if a set may be rendered there.

    A set is known by its manifest, which is there from before the first frame. Hidden files, such
    as those that a version control system keeps in an empty folder, do not count.
    """
    if not out.is_dir() or any(_is_manifest(out / name) for name in (NAME, STARTED)):
        return None
    return next((path for path in sorted(out.iterdir()) if not path.name.startswith(".")), None)


def open_folder(config: SyntheticConfig) -> dict[str, Any] | None:
    """Claim the folder for these settings, or explain why it cannot be.

    Returns:
        The manifest of a finished set with the same settings, else None.

    Raises:
        DataError: ``out`` is a file, holds something else, or a set of other settings.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; a folder was expected")
    if found := foreign_file(out):
        raise DataError(
            f"{out} holds other files, such as {found.name}, and is not a synthetic set: nothing "
            "was written. Choose another folder, one that is empty or not there"
        )
    for name in (NAME, STARTED):
        manifest = _read(out / name)
        if manifest is not None:
            _compare(out, manifest, config)
            return manifest if name == NAME else None
    out.mkdir(parents=True, exist_ok=True)
    _write(out / STARTED, _header(config))
    return None


def close_folder(config: SyntheticConfig, records: dict[Frame, Record]) -> None:
    """Write the manifest, which marks the set as finished."""
    histogram = {split: [0] * (len(CLASS_ID) + 1) for split in SPLITS}
    files: dict[str, str] = {}
    for frame, record in records.items():
        sums = histogram[frame.split]
        histogram[frame.split] = [a + b for a, b in zip(sums, record.pixels, strict=True)]
        files |= record.hashes
    names = (*CLASS_ID, "ignored")
    manifest = {
        **_header(config),
        "numpy": np.__version__,
        "histogram": {
            split: dict(zip(names, sums, strict=True))
            for split, sums in histogram.items()
            if config.counts[split]
        },
        "files": dict(sorted(files.items())),
    }
    _write(config.out / NAME, manifest)
    (config.out / STARTED).unlink(missing_ok=True)


def _header(config: SyntheticConfig) -> dict[str, Any]:
    return {
        "dataset": DATASET,
        "version": VERSION,
        "profile": config.profile,
        "settings": config.settings(),
    }


def _compare(out: Path, found: dict[str, Any], config: SyntheticConfig) -> None:
    settings = found.get("settings")
    there = settings if isinstance(settings, dict) else {}
    there = {"version": found.get("version"), **there}
    here = {"version": VERSION, **config.settings()}
    differing = [
        f"{name} is {there.get(name)}, asked for {value}"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if differing:
        raise DataError(
            f"{out} holds a synthetic set of other settings: {'; '.join(differing)}. "
            "Choose another folder, ask for the settings that are there, or delete the folder"
        )


def _is_manifest(path: Path) -> bool:
    """True if a file is ours, or may have been before it was damaged."""
    try:
        content = _read(path)
    except DataError:
        return True
    return content is not None and content.get("dataset") == DATASET


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json_values(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}), so that nothing tells whether the folder holds a "
            "synthetic set: choose another --out, or delete the folder if it holds nothing else"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a manifest of a synthetic set; choose another --out")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1) + "\n", durable=False)
