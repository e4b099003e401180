"""``python -m fastseg.data``: make data sets and look after them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import fastseg
from fastseg.cli import BAD_INPUT
from fastseg.files import write_whole
from fastseg.pipelines import get_dataset
from fastseg.pipelines.check import check_dataset, summarise
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
    command: Synthetic | Check = tyro.extras.subcommand_cli_from_dict(
        {"synthetic": Synthetic, "check": Check},
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
