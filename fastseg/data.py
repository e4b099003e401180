"""``python -m fastseg.data``: make data sets and look after them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fastseg.pipelines.synthetic import SyntheticConfig, generate, profile


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

    def run(self) -> None:
        """Make the set and say where it is."""
        config = self.config()
        out = generate(config)
        counts = ", ".join(f"{split} {count}" for split, count in config.counts.items() if count)
        print(f"{out}: {counts} frames of {config.size} x {config.size} px")


def main(args: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"synthetic": Synthetic}, args=args, prog="python -m fastseg.data", description=__doc__
    )
    try:
        command.run()
    except (ValueError, OSError) as error:  # DataError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
