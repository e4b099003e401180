"""The folder of predictions: its files, what is finished in it, and the record of what made it."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastseg
from fastseg.errors import ConfigError
from fastseg.pipelines.tools.json_values import json_values
from fastseg.pipelines.tools.names import local, portable, readable
from fastseg.pipelines.tools.whole_files import remove, unfinished, write_whole
from fastseg.prediction.options import Kind

MANIFEST, UNREADABLE = "predictions.json", "unreadable.csv"
_FOLDERS: dict[Kind, tuple[str, str]] = {
    "labels": ("labels", ".png"),
    "palette": ("palette", ".png"),
    "overlay": ("overlay", ".png"),
    "probabilities": ("probabilities", ".npy"),
}
"""Sub-folder and suffix of what is written of a sample."""


class Output:
    """A folder that holds the predictions of one network with one set of settings.

    Args:
        folder: made by `begin`.
        kinds: what is written of each sample.
        settings: what the predictions depend on, as JSON values: those of another folder differ.
    """

    def __init__(self, folder: Path, kinds: Sequence[Kind], settings: dict[str, Any]) -> None:
        self.folder, self.kinds, self.settings = folder, tuple(kinds), settings
        self._earlier: list[str] = []

    def path(self, kind: Kind, name: str) -> Path:
        """The file of one kind of a sample."""
        below, suffix = _FOLDERS[kind]
        return self.folder / below / f"{name}{suffix}"

    def begin(self, command: Sequence[str], overwrite: bool) -> None:
        """Make the folder or take the one of the same settings, and record what is about to be.

        What a killed command left half-written is removed.

        Raises:
            ConfigError: the folder holds predictions of other settings, or other things.
        """
        manifest = self.folder / MANIFEST
        if manifest.exists():
            found = _read(manifest)
            self._compare(found)
            written = found.get("written")
            self._earlier = written if isinstance(written, list) else []
            for path in unfinished(self.folder):
                remove(path)
            if overwrite:
                (self.folder / UNREADABLE).unlink(missing_ok=True)
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(
                f"{self.folder} is not empty and has no {MANIFEST}: choose a folder of its own for "
                "predictions with --out"
            )
        self._record(command, {})

    def end(self, command: Sequence[str], subsets: Mapping[str, int]) -> None:
        """Record that all samples are there, and how many of each subset of the sensors."""
        self._record(command, {"samples": sum(subsets.values()), "subsets": dict(subsets)})

    def is_finished(self, name: str) -> bool:
        """True if all files of a sample are there."""
        return all(_has_content(self.path(kind, name)) for kind in self.kinds)

    def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Write one file of a sample: whole, or not at all."""
        # a sample that a power cut empties is predicted again
        write_whole(self.path(kind, name), data, durable=False)

    def note_unreadable(self, name: str, faults: Mapping[str, str]) -> None:
        """Add the sensors of a sample that could not be read, and why, to the list of them."""
        text = io.StringIO()
        for sensor, reason in faults.items():
            csv.writer(text).writerow((portable(name), sensor, readable(reason)))
        with open(self.folder / UNREADABLE, "ab") as file:
            # one call, so that lines of several processes do not mix
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))

    def unreadable(self) -> dict[str, set[str]]:
        """Sensors that could not be read, by sample."""
        found: dict[str, set[str]] = {}
        try:
            text = (self.folder / UNREADABLE).read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return found
        for row in csv.reader(io.StringIO(text, newline="")):
            if len(row) == 3:
                found.setdefault(local(row[0]), set()).add(row[1])
        return found

    def _compare(self, found: dict[str, Any]) -> None:
        theirs = found.get("settings")
        theirs = theirs if isinstance(theirs, dict) else {}
        differences = [
            f"{name}: {_brief(theirs.get(name))} there, {_brief(value)} wanted"
            for name, value in self.settings.items()
            if theirs.get(name) != value
        ]
        if differences:
            raise ConfigError(
                f"{self.folder} holds other predictions, which these would mix with:\n  "
                + "\n  ".join(differences)
                + "\nChoose another folder with --out, or move that one away."
            )

    def _record(self, command: Sequence[str], more: dict[str, Any]) -> None:
        content = {
            "fastseg": fastseg.__version__,
            "command": [readable(word) for word in command],
            "finished": bool(more),
            "written": [*dict.fromkeys([*self._earlier, *self.kinds])],
            "settings": self.settings,
            **more,
        }
        write_whole(self.folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def _read(manifest: Path) -> dict[str, Any]:
    try:
        content = json_values(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{manifest} cannot be read ({error}): choose another folder with --out, or move that "
            "one away"
        ) from None
    return content if isinstance(content, dict) else {}


def _has_content(path: Path) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
