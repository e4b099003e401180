"""The files and folders that a command is given, looked at before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

from fastseg.config.run import TrainConfig
from fastseg.errors import ConfigError
from fastseg.pipelines import get_dataset


def check_places(config: TrainConfig) -> None:
    """Refuse a run whose files cannot be read, before its folder is made.

    Raises:
        DataError: there is no such data set, or its description cannot be used.
        ConfigError: there is no stage, a file of weights is not there or no file, the folder of a
            foundation encoder cannot serve, or the place of the runs or of the data is a file or
            cannot be read.
    """
    if not config.stages:
        raise ConfigError(
            "the config has no stage: start from a preset (--preset demo, or preset in the file), "
            "or name stages as --preset demo --print-config has them"
        )
    # a data set of the reader's own is described by a file, which is read here first
    get_dataset(config.data.dataset, config.data.description)
    for name, path in config.given.items():
        _check_file(f"--{name}", path, config.instead_of(name))
    # a run that goes on reads its first weights no more
    begun = any((config.out / config.name / "checkpoints").glob("*"))
    if config.model.weights is not None and not begun:
        _check_file("--model.weights", config.model.weights, "give a file of encoder weights")
    config.model.check_files()
    _check_folder("--data.root", config.data.root)
    _check_folder("--out", config.out)


def _check_file(option: str, path: Path, remedy: str) -> None:
    if path.is_file() and os.access(path, os.R_OK):
        return
    fault = "is a folder" if path.is_dir() else "cannot be read"
    fault = fault if path.exists() else "does not exist"
    raise ConfigError(f"{option} {path} {fault}: {remedy}")


def _check_folder(option: str, path: Path) -> None:
    """A folder that is not there yet may be made, or is reported by who needs it."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{option} {path}: {there} is a file; give a folder")
    if there == path and not os.access(path, os.R_OK | os.X_OK):
        raise ConfigError(f"{option} {path} cannot be read; choose another folder")
