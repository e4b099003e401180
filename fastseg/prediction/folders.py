"""Samples in a plain folder with a sub-folder per sensor, matched by the names of their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fastseg.errors import listed
from fastseg.pipelines import DataError, ModalitySpec
from fastseg.pipelines.tools.folders import closed, refuse_closed
from fastseg.pipelines.tools.names import name_bytes
from fastseg.prediction.samples import Sample

_SUFFIXES = {"image": (".png", ".jpg", ".jpeg"), "array": (".npy", ".npz")}


def of_folder(
    folder: Path, modalities: Sequence[ModalitySpec], note: Callable[[str], None]
) -> list[Sample]:
    """The samples of ``folder/<sensor>/<name>.png``; names may have folders of their own.

    The arrays of a sensor that has several lie in folders that are called as in its data set, such
    as ``polL_aolp_sin`` and ``polL_aolp_cos``. Files whose names start with a dot are no samples.

    Args:
        folder: holds the sub-folders.
        modalities: sensors of the network.
        note: takes a line about folders that are not read.

    Raises:
        DataError: there is no such folder, no sensor or no file in it, or two files have one name.
    """
    if not folder.is_dir():
        refuse_closed(folder)
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"--folder {folder} {what}; give a folder with a sub-folder per sensor: "
            f"{_wanted(modalities)}",
            "missing",
        )
    places = {m.name: sub_folders(m) for m in modalities}
    there = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
    known = [place for found in places.values() for place in found]
    if not set(there) & set(known):
        found = f"found {listed(there)}" if there else "it has no folders"
        raise DataError(
            f"{folder} has no folder of a sensor: expected {_wanted(modalities)}, {found}. Rename "
            "them, give the folder above or below, or use --root for the layout of the data set",
            "missing",
        )
    files = {
        m.name: [_files(folder / place, _SUFFIXES[m.decoder]) for place in places[m.name]]
        for m in modalities
    }
    names = {name for parts in files.values() for part in parts for name in part}
    if not names:
        suffixes = dict.fromkeys(s for m in modalities for s in _SUFFIXES[m.decoder])
        raise DataError(
            f"there is no file to predict in {listed(f'{folder / n}' for n in known if n in there)}"
            f"; expected files that end in {' '.join(suffixes)}",
            "missing",
        )
    samples = [
        Sample(
            name,
            {
                sensor: tuple(part[name] for part in parts)
                for sensor, parts in files.items()
                if all(name in part for part in parts)
            },
        )
        for name in sorted(names, key=name_bytes)
    ]
    _refuse_apart(folder, samples)
    if others := [name for name in there if name not in known and not name.startswith(".")]:
        note(
            f"note: {listed(others)} in {folder} belong to no sensor and are not read; sensors "
            f"are {_wanted(modalities)}"
        )
    return samples


def sub_folders(modality: ModalitySpec) -> tuple[str, ...]:
    """Names of the sub-folders that hold the files of a sensor."""
    if len(modality.files) == 1:
        return (modality.name,)
    return tuple(file.folder.rpartition("/")[2] for file in modality.files)


def _refuse_apart(folder: Path, samples: Sequence[Sample]) -> None:
    """Refuse files of several sensors of which no two belong together."""
    if any(len(sample.files) != 1 for sample in samples):
        return
    first = {sensor: files[0] for sample in samples for sensor, files in sample.files.items()}
    if len(first) > 1:
        raise DataError(
            f"no two sensors in {folder} have a file of one name, such as "
            f"{listed(map(str, first.values()), 2)}; files of one sample have one name, behind the "
            "folder of their sensor. Rename them, name them in a --list, or use --root if this is "
            "the layout of the data set",
            "name",
        )


def _wanted(modalities: Sequence[ModalitySpec]) -> str:
    return ", ".join(name for modality in modalities for name in sub_folders(modality))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise closed(folder, error) from error


def _files(folder: Path, suffixes: Sequence[str], under: str = "") -> dict[str, Path]:
    """Path of every file below a folder by its name, without suffix."""
    result: dict[str, Path] = {}
    if not folder.is_dir():
        return result
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            result |= _files(path, suffixes, f"{under}{entry.name}/")
        elif path.suffix.lower() in suffixes:
            name = f"{under}{path.stem}"
            if name in result:
                raise DataError(
                    f"{result[name]} and {path} are two files of one sensor and sample; take one "
                    "of them out",
                    "name",
                )
            result[name] = path
    return result
