"""Settings of the synthetic data set, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..tools.settings import Natural, SceneSide, Seed, Workers, check_fields

SPLITS: Final[tuple[str, ...]] = ("train", "val", "test")
# size, then frames of train, val, test; full has the counts of the published set
PROFILES: Final[dict[str, tuple[int, int, int, int]]] = {
    "demo": (128, 600, 150, 0),
    "tiny": (256, 160, 40, 40),
    "small": (512, 800, 200, 200),
    "full": (1042, 3983, 2005, 1897),
}


@dataclass(frozen=True)
class SyntheticConfig:
    """Frames to render and their folder. Everything but ``out`` and ``workers`` shapes content."""

    out: Path
    """Folder of the data set; made if missing, continued if unfinished."""
    size: SceneSide = 128
    """Height and width of the images in pixels, 64 to 1042."""
    train: Natural = 600
    """Frames of the training split."""
    val: Natural = 150
    """Frames of the validation split."""
    test: Natural = 0
    """Frames of the test split, whose streets differ on purpose from the other two."""
    seed: Seed = 0
    """Changes every frame."""
    lidar: Literal["rich", "grey"] = "rich"
    """LiDAR image: rich = range, reflectivity, height; grey = range in metres as in DELIVER."""
    workers: Workers = 0
    """Rendering processes; 0 for one per CPU. The files do not depend on it."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not any(self.counts.values()):
            raise ValueError("nothing to render: train, val and test are all 0")

    @property
    def profile(self) -> str:
        """Name of the profile with this size and these counts, or ``custom``."""
        mine = (self.size, self.train, self.val, self.test)
        return next((name for name, shape in PROFILES.items() if shape == mine), "custom")

    @property
    def counts(self) -> dict[str, int]:
        """Frames per split."""
        return {split: getattr(self, split) for split in SPLITS}

    def settings(self) -> dict[str, int | str]:
        """Settings that determine the content, for the manifest."""
        return {"seed": self.seed, "size": self.size, "lidar": self.lidar, **self.counts}


def profile(name: str) -> dict[str, int]:
    """Size and counts of a named profile, as arguments of ``SyntheticConfig``.

    Raises:
        ValueError: there is no such profile.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known are {', '.join(PROFILES)}")
    return dict(zip(("size", *SPLITS), PROFILES[name], strict=True))
