"""``python -m fastseg.data``: make data sets and look after them."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import fastseg
from fastseg.cli import BAD_INPUT
from fastseg.contact_sheet import draw_sheet
from fastseg.files import write_whole
from fastseg.pipelines import get_dataset
from fastseg.pipelines.build import refuse_raw
from fastseg.pipelines.catalogue.muses import SENSORS
from fastseg.pipelines.check import LISTED, check_dataset, summarise
from fastseg.pipelines.files import find_sample, list_split
from fastseg.pipelines.projection import PrepareConfig, prepare_muses
from fastseg.pipelines.statistics import measure
from fastseg.pipelines.synthetic import SyntheticConfig, generate, profile


@dataclass(frozen=True)
class DataSet:
    """A data set on disk."""

    dataset: Annotated[str, tyro.conf.arg(aliases=["--data.dataset"])] = "deliver"
    """Name of its spec: deliver, muses, muses-raw, mcubes, nyu, mfnet, kitti360, or a variant."""
    root: Annotated[Path, tyro.conf.arg(aliases=["--data.root"])] = Path("data/deliver")
    """Folder that holds it."""
    modalities: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--data.modalities"])] = ()
    """Modalities to look at; none for all that are used unless named."""
    workers: int = 0
    """Processes; 0 for one per CPU. The result does not depend on it."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one per CPU) or more, got {self.workers}")


@dataclass(frozen=True)
class Check(DataSet):
    """Decode every file, compare it with the data set's spec and name every fault.

    Looks at files that are missing or damaged, bit depth, sizes, label values and conditions. The
    exit code is 0 without faults and 2 with any.
    """

    splits: tuple[str, ...] = ()
    """Splits to check; none for all that are there."""
    json: Path | None = None
    """File for the whole report."""

    def run(self) -> int:
        """Check, print a summary, write the report."""
        spec = get_dataset(self.dataset)
        report = check_dataset(spec, self.root, self.splits, self.modalities, self.workers)
        print(summarise(report))
        if self.json is not None:
            content = {"fastseg": fastseg.__version__, "ok": not report.faults, **asdict(report)}
            write_whole(self.json, json.dumps(content, indent=1) + "\n")
            print(f"report: {self.json}")
        return BAD_INPUT if report.faults else 0


@dataclass(frozen=True)
class Stats(DataSet):
    """Measure mean and deviation of every modality and count the pixels of every class."""

    out: Path = Path("stats.json")
    """JSON file for the numbers."""
    split: str = "train"
    """Split to measure."""

    def run(self) -> int:
        """Measure, print a table, write the file."""
        spec = get_dataset(self.dataset)
        refuse_raw(spec, self.modalities)
        files = list_split(spec, self.root, self.split, self.modalities)
        numbers = measure(files, self.workers)
        for name, values in numbers["modalities"].items():
            mean, std = (" ".join(f"{x:.6g}" for x in values[key]) for key in ("mean", "std"))
            print(f"{name}: mean {mean}, std {std} {values['unit']}".rstrip())
        labelled = sum(numbers["classes"].values())
        for name, pixels in numbers["classes"].items():
            print(f"  {name}: {pixels} pixels, {100 * pixels / max(labelled, 1):.4g} %")
        content = {"fastseg": fastseg.__version__, **numbers}
        write_whole(self.out, json.dumps(content, indent=1) + "\n")
        print(f"{numbers['samples']} samples of {self.split}: {self.out}")
        return 0


@dataclass(frozen=True)
class Show(DataSet):
    """Draw a sample: all modalities, the label in its colours, a legend."""

    out: Path = Path("sample.png")
    """PNG file of the sheet."""
    split: str = "train"
    """Split of the sample."""
    sample: str = "0"
    """Id of the sample, such as sun/train/MAP_1_point1/100000, or its number in the split."""
    longest: int = 512
    """Pixels of a picture's longer side."""

    def run(self) -> int:
        """Draw the sheet and write it."""
        if self.longest < 16:
            raise ValueError(f"longest must be at least 16 pixels, got {self.longest}")
        spec = get_dataset(self.dataset)
        refuse_raw(spec, self.modalities)
        files = list_split(spec, self.root, self.split, self.modalities)
        sheet = io.BytesIO()
        draw_sheet(files, find_sample(files, self.sample), self.longest).save(sheet, "PNG")
        write_whole(self.out, sheet.getvalue())
        print(self.out)
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
    lidar_width: int = 1
    """Side of a LiDAR point in pixels; 2 in the enlarged images of the SDK and CAFuser."""
    radar_width: int = 1
    """Side of a radar point in pixels; 10 in the enlarged images of the SDK and CAFuser."""
    event_width: int = 1
    """Side of an event in pixels; 2 in the enlarged images of the SDK, 3 in CAFuser's."""
    workers: int = 0
    """Processes; 0 for one per CPU. The files do not depend on it."""

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
    size: int | None = None
    """Height and width of the images in pixels, 64 to 1042."""
    train: int | None = None
    """Frames of the training split."""
    val: int | None = None
    """Frames of the validation split."""
    test: int | None = None
    """Frames of the test split, whose streets differ on purpose from the other two."""
    seed: int = 0
    """Changes every frame."""
    lidar: Literal["rich", "grey"] = "rich"
    """LiDAR image: rich = range, reflectivity, height; grey = range in metres as in DELIVER."""
    workers: int = 0
    """Rendering processes; 0 for one per CPU. The files do not depend on it."""

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


def main(args: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    command: Synthetic | Check | Stats | Show | Prepare = tyro.extras.subcommand_cli_from_dict(
        {"synthetic": Synthetic, "check": Check, "stats": Stats, "show": Show, "prepare": Prepare},
        args=args,
        prog="python -m fastseg.data",
        description=__doc__,
    )
    try:
        return command.run()
    except (ValueError, OSError) as error:  # DataError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
