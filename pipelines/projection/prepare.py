"""Project a whole download: in parallel, resumable, each file whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from ..datasets.catalogue.muses import PROJECTED, SENSORS
from ..datasets.spec import unknown_name
from ..decode.images import check_header
from ..decode.muses_raw import import_h5py, read_events, read_points, read_polar
from ..errors import DataError
from ..tools.process_pool import each
from ..tools.progress import Progress
from ..tools.reading import read_bytes
from ..tools.settings import Range, Workers, check_fields
from ..tools.whole_files import write_whole
from .calibration import Calibration, read_calibration, read_json
from .encode import encode_counts, encode_values
from .motion import read_gnss
from .raster import Size
from .scenes import SPLITS, Scene, read_scenes
from .sensors import EVENT_WINDOW_US, Motion, event_image, lidar_image, radar_image

SETTINGS = "projection.json"
"""What the files in the folder were made with."""
_VERSION = 1
PointWidth = Annotated[int, Range(1, 15)]
"""Side of a drawn point in pixels."""


@dataclass(frozen=True)
class PrepareConfig:
    """Sensors and splits to project, folders and options.

    Raises:
        ValueError: a setting is out of range.
    """

    root: Path
    """Folder of the download."""
    out: Path | None = None
    """Folder of the projections; none for ``projected_to_rgb`` in the root."""
    sensors: tuple[str, ...] = SENSORS
    """Sensors to project."""
    splits: tuple[str, ...] = SPLITS
    """Splits to project."""
    motion: bool = True
    """Undo the vehicle's motion for scenes with a GNSS file."""
    width: dict[str, PointWidth] = field(default_factory=dict)
    """Side of a point in pixels per sensor; 1 unless given."""
    workers: Workers = 0
    """Processes; 0 for one per CPU. The files do not depend on it."""

    def __post_init__(self) -> None:
        check_fields(self)
        for sensor in (*self.sensors, *self.width):
            if sensor not in SENSORS:
                raise unknown_name("sensor of muses", sensor, SENSORS)

    @property
    def target(self) -> Path:
        """Folder of the projections."""
        return self.root / PROJECTED if self.out is None else self.out

    @property
    def settings(self) -> dict[str, object]:
        """Settings that decide the content of the files."""
        widths = {sensor: self.width.get(sensor, 1) for sensor in SENSORS}
        return {"version": _VERSION, "motion": self.motion, "width": widths}


@dataclass(frozen=True)
class SceneReport:
    """Files written and kept for one scene, and its faults."""

    written: int = 0
    kept: int = 0
    moved: bool = False
    """True if motion was undone."""
    faults: tuple[str, ...] = ()


@dataclass
class PrepareReport:
    """Files written and kept for all scenes, and their faults."""

    out: Path
    scenes: int = 0
    written: int = 0
    kept: int = 0
    moved: int = 0
    """Scenes of whose new files motion was undone."""
    faults: list[str] = field(default_factory=list)


def prepare_muses(config: PrepareConfig, progress: bool = True) -> PrepareReport:
    """Project every scene; files that are there are kept, scenes with a fault are reported.

    Raises:
        DataError: the download lacks its calibration, its list of scenes or a sensor, h5py is not
            installed, or the target holds files of other settings.
        KeyboardInterrupt: after the scenes in work are done; the same call continues.
    """
    calibration = read_calibration(config.root)
    scenes = read_scenes(config.root, config.splits)
    for sensor in config.sensors:
        if not (config.root / sensor).is_dir():
            raise DataError(
                f"{config.root / sensor} does not exist; unpack the {sensor} archive of the "
                "download there, or leave the sensor out with --sensors",
                "missing",
            )
    if "event_camera" in config.sensors:
        import_h5py()
    _open_target(config)
    report = PrepareReport(config.target, len(scenes))
    with Progress("projecting muses", len(scenes), shown=progress, unit="scene") as shown:
        for scene in each(partial(project_scene, config, calibration), scenes, config.workers):
            report.written += scene.written
            report.kept += scene.kept
            report.moved += scene.moved
            report.faults += scene.faults
            shown.advance()
    report.faults.sort()
    return report


def project_scene(config: PrepareConfig, calibration: Calibration, scene: Scene) -> SceneReport:
    """Write the projections of one scene that are not there yet."""
    targets = {s: config.target / scene.files[s].with_suffix(".png") for s in config.sensors}
    todo = {sensor: target for sensor, target in targets.items() if not target.exists()}
    kept = len(targets) - len(todo)
    if not todo:
        return SceneReport(kept=kept)
    try:
        camera = config.root / scene.camera
        size = check_header(read_bytes(camera), camera)
        motion = _motion(config, scene)
    except DataError as error:
        return SceneReport(kept=kept, faults=(str(error),))
    faults = []
    for sensor, target in todo.items():
        make = _MAKERS[sensor]
        path, width = config.root / scene.files[sensor], config.width.get(sensor, 1)
        try:
            write_whole(target, make(path, calibration, size, motion, width))
        except DataError as error:
            faults.append(str(error))
    written = len(todo) - len(faults)
    moved = motion is not None and bool({"lidar", "radar"} & set(todo))
    return SceneReport(written, kept, moved, tuple(faults))


def _motion(config: PrepareConfig, scene: Scene) -> Motion | None:
    if not config.motion or scene.gnss is None or not (config.root / scene.gnss).exists():
        return None
    return Motion(read_gnss(config.root / scene.gnss), scene.exposure_s)


def _lidar(
    path: Path, calibration: Calibration, size: Size, motion: Motion | None, width: int
) -> bytes:
    return encode_values(lidar_image(read_points(path), calibration, size, motion, width))


def _radar(
    path: Path, calibration: Calibration, size: Size, motion: Motion | None, width: int
) -> bytes:
    return encode_values(radar_image(read_polar(path), calibration, size, motion, width))


def _events(
    path: Path, calibration: Calibration, size: Size, _motion: Motion | None, width: int
) -> bytes:
    events = read_events(path, last_us=EVENT_WINDOW_US)
    return encode_counts(event_image(events, calibration, size, width))


_MAKERS: dict[str, Callable[[Path, Calibration, Size, Motion | None, int], bytes]] = {
    "lidar": _lidar,
    "radar": _radar,
    "event_camera": _events,
}


def _open_target(config: PrepareConfig) -> None:
    """Note the settings, or compare them with those of the files that are there.

    Raises:
        DataError: they differ, or the files are not of this command.
    """
    path = config.target / SETTINGS
    if path.exists():
        before = read_json(path)
        if before != config.settings:
            changes = "; ".join(
                f"{key} is {before.get(key)}, asked for {value}"
                for key, value in config.settings.items()
                if before.get(key) != value
            )
            raise DataError(
                f"{config.target} holds projections of other settings ({changes}); use those, "
                "another --out, or remove the folder"
            )
        return
    found = next((p for s in SENSORS for p in (config.target / s).rglob("*") if p.is_file()), None)
    if found is not None:
        raise DataError(
            f"{config.target} holds files that this command did not write, such as {found}; "
            "choose another --out"
        )
    write_whole(path, (json.dumps(config.settings, indent=1) + "\n").encode())
