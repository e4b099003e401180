"""The subcommands of ``python -m fastseg.data`` that make or bring a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastseg.cli.command import BAD_INPUT
from fastseg.pipelines.datasets.catalogue.muses import SENSORS
from fastseg.pipelines.inspection.check import LISTED
from fastseg.pipelines.projection import PrepareConfig, prepare_muses
from fastseg.pipelines.projection.prepare import PointWidth
from fastseg.pipelines.synthetic import SyntheticConfig, generate, profile
from fastseg.pipelines.tools.elsewhere.archives import unpack
from fastseg.pipelines.tools.elsewhere.download import fetch
from fastseg.pipelines.tools.settings import Natural, SceneSide, Seed, Workers, check_fields


@dataclass(frozen=True)
class Fetch:
    """Download a file and verify it; it has its name only once its hash is right."""

    url: str
    """Address, https."""
    sha256: str
    """Expected SHA-256 of the file."""
    out: Path
    """Name of the file."""

    def run(self) -> int:
        """Download, or find the file there."""
        print(f"{fetch(self.url, self.out, self.sha256)}: SHA-256 is right")
        return 0


@dataclass(frozen=True)
class Unpack:
    """Unpack a ZIP or TAR file, refusing what would leave the folder, link or explode.

    Archives of one data set may share a folder. Nothing appears if anything is wrong.
    """

    archive: tyro.conf.Positional[Path]
    """The archive."""
    out: Path
    """Folder to unpack into."""

    def run(self) -> int:
        """Unpack and say how many files."""
        print(f"{self.out}: {unpack(self.archive, self.out)} files")
        return 0


@dataclass(frozen=True)
class Prepare:
    """Project the LiDAR, radar and events of a download into the images of its camera.

    Continues where an interrupted run stopped. Scenes with a fault are reported and left out; the
    exit code is then 2.
    """

    dataset: tyro.conf.Positional[Literal["muses"]]
    """The data set."""
    root: Annotated[Path, tyro.conf.arg(aliases=["--data.root"])] = Path("data/muses")
    """Folder of the download."""
    out: Path | None = None
    """Folder of the projections; none for projected_to_rgb in the root."""
    sensors: tuple[Literal["event_camera", "lidar", "radar"], ...] = SENSORS
    """Sensors to project."""
    splits: tuple[str, ...] = ("train", "val", "test")
    """Splits to project."""
    motion: bool = True
    """Undo the vehicle's motion between measurement and exposure, for scenes with a GNSS file."""
    lidar_width: PointWidth = 1
    """Side of a LiDAR point in pixels; 2 in the enlarged images of the SDK and CAFuser."""
    radar_width: PointWidth = 1
    """Side of a radar point in pixels; 10 in the enlarged images of the SDK and CAFuser."""
    event_width: PointWidth = 1
    """Side of an event in pixels; 2 in the enlarged images of the SDK, 3 in CAFuser's."""
    workers: Annotated[Workers, tyro.conf.arg(aliases=["--data.workers"])] = 0
    """Processes; 0 for one per CPU. The files do not depend on it."""

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self) -> int:
        """Project what is not there yet and say what was done."""
        widths = (self.event_width, self.lidar_width, self.radar_width)
        report = prepare_muses(
            PrepareConfig(
                self.root,
                self.out,
                self.sensors,
                self.splits,
                self.motion,
                dict(zip(SENSORS, widths, strict=True)),
                self.workers,
            )
        )
        print(
            f"{report.out}: {report.scenes} scenes, {report.written} files written, {report.kept} "
            f"there before; motion undone in {report.moved}"
        )
        for fault in report.faults[:LISTED]:
            print(f"  {fault}")
        if report.faults:
            print(f"{len(report.faults)} faults; the same command continues once they are mended")
        return BAD_INPUT if report.faults else 0


@dataclass(frozen=True)
class Synthetic:
    """Render streets seen by camera, depth, event and LiDAR sensors, in DELIVER's layout.

    Continues where an interrupted run stopped; returns at once when the set is there.
    """

    out: Path
    """Folder of the data set; made if missing, continued if unfinished."""
    profile: Literal["demo", "tiny", "small", "full"] = "demo"
    """Where size and counts come from unless given: demo 128 px, 600/150/0 frames; tiny 256 px,
    160/40/40; small 512 px, 800/200/200; full 1042 px, 3983/2005/1897."""
    size: SceneSide | None = None
    """Height and width of the images in pixels, 64 to 1042."""
    train: Natural | None = None
    """Frames of the training split."""
    val: Natural | None = None
    """Frames of the validation split."""
    test: Natural | None = None
    """Frames of the test split, whose streets differ on purpose from the other two."""
    seed: Seed = 0
    """Changes every frame."""
    lidar: Literal["rich", "grey"] = "rich"
    """LiDAR image: rich = range, reflectivity, height; grey = range in metres as in DELIVER."""
    workers: Annotated[Workers, tyro.conf.arg(aliases=["--data.workers"])] = 0
    """Rendering processes; 0 for one per CPU. The files do not depend on it."""

    def __post_init__(self) -> None:
        check_fields(self)

    def config(self) -> SyntheticConfig:
        """The settings with the profile filled in."""
        given = {"size": self.size, "train": self.train, "val": self.val, "test": self.test}
        shape = profile(self.profile) | {k: v for k, v in given.items() if v is not None}
        return SyntheticConfig(
            self.out, **shape, seed=self.seed, lidar=self.lidar, workers=self.workers
        )

    def run(self) -> int:
        """Make the set and say where it is."""
        config = self.config()
        out = generate(config)
        counts = ", ".join(f"{split} {count}" for split, count in config.counts.items() if count)
        print(f"{out}: {counts} frames of {config.size} x {config.size} px")
        return 0
