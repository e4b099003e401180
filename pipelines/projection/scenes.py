"""Scenes, the files that belong together, from ``meta.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..datasets.catalogue.muses import SENSORS
from ..datasets.spec import unknown_name
from ..errors import DataError
from .calibration import read_json

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Scene:
    """One recording; all paths are relative to the root."""

    name: str
    """First three tokens of its file names."""
    folder: PurePosixPath
    """Split, weather, time of day."""
    files: dict[str, PurePosixPath]
    """Raw file of each sensor."""
    gnss: PurePosixPath | None
    """Position and motion of the vehicle; None if there is none."""
    exposure_s: float
    """Middle of the camera's exposure, in seconds."""

    @property
    def camera(self) -> PurePosixPath:
        """The image of the frame camera."""
        return "frame_camera" / self.folder / f"{self.name}_frame_camera.png"


def read_scenes(root: Path, splits: Sequence[str] = SPLITS) -> list[Scene]:
    """The scenes of some splits, sorted by folder and name.

    Raises:
        DataError: ``meta.json`` is missing or an entry lacks something, or a split is unknown.
    """
    for split in splits:
        if split not in SPLITS:
            raise unknown_name("split of muses", split, SPLITS)
    path = root / "meta.json"
    scenes = [_scene(path, name, entry) for name, entry in read_json(path).items()]
    chosen = [scene for scene in scenes if scene.folder.parts[0] in splits]
    if not chosen:
        raise DataError(
            f"{path} has no scene of {', '.join(splits)} among its {len(scenes)}; check --splits"
        )
    return sorted(chosen, key=lambda scene: (scene.folder, scene.name))


def _scene(path: Path, name: str, entry: Any) -> Scene:
    def value(key: str) -> Any:
        if not isinstance(entry, dict) or entry.get(key) in (None, ""):
            raise DataError(f"{path}: scene {name} has no {key}; restore the file of the download")
        return entry[key]

    def relative(key: str) -> PurePosixPath:
        found = PurePosixPath(str(value(key)))
        # it also becomes the path of what is written
        if found.is_absolute() or ".." in found.parts or "\\" in str(found):
            raise DataError(
                f"{path}: {key} of scene {name} leaves the data set ({found}); do not use this "
                "file, fetch it again from where it should come from"
            )
        return found

    files = {sensor: relative(f"path_to_{sensor}") for sensor in SENSORS}
    folder = PurePosixPath(*files["lidar"].parts[1:-1])
    if len(folder.parts) != 3:
        raise DataError(
            f"{path}: path_to_lidar of scene {name} is {files['lidar']}; expected "
            "lidar/<split>/<weather>/<time of day>/<file>. Restore the file of the download"
        )
    try:
        start, end = (
            int(value(f"frame_camera_exposure_{moment}_timestamp_us"))
            for moment in ("start", "end")
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: the exposure of scene {name} is no number ({error}); restore the file of "
            "the download"
        ) from error
    gnss = relative("path_to_gnss") if entry.get("path_to_gnss") else None
    return Scene(name, folder, files, gnss, (start + end) / 2 / 1e6)
