"""Frames of a split: conditions, corner cases and scenes, spread evenly, not by chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from .catalogue import CASES, CONDITIONS

# folder and file tag of every image of a sample, as DELIVER names them
FOLDERS: Final[dict[str, str]] = {
    "img": "rgb",
    "hha": "depth",
    "depth": "depth",
    "event": "event",
    "lidar": "lidar",
    "semantic": "semantic",
}
# no map serves two splits
MAPS: Final[dict[str, tuple[int, ...]]] = {
    "train": (1, 2, 3, 4, 5),
    "val": (6, 7, 8),
    "test": (9, 10),
}
CORNER_SHARE: Final = 0.35
SCENE_FRAMES: Final = 4
FIRST_FRAME: Final = 100_000
FRAME_STEP: Final = 50

# the published split: frames per condition (cloud, fog, night, rain, sun) and in corner cases
_PUBLISHED: Final[dict[tuple[str, int], tuple[tuple[int, ...], int]]] = {
    ("train", 3983): ((794, 795, 797, 799, 798), 1398),
    ("val", 2005): ((398, 400, 410, 398, 399), 707),
    ("test", 1897): ((379, 379, 379, 380, 380), 699),
}


@dataclass(frozen=True)
class Frame:
    """The name of one sample; its content follows from the name, the seed and the size alone."""

    split: str
    condition: str
    map: int
    point: int
    case: str
    """One of the five corner cases, or empty."""
    number: int

    @property
    def folder(self) -> str:
        """Name of the scene's folder, such as ``MAP_4_point12_motionblur``."""
        return f"MAP_{self.map}_point{self.point}" + (f"_{self.case}" if self.case else "")

    def path(self, folder: str) -> PurePosixPath:
        """Path of one of the six images, relative to the root."""
        name = f"{self.number:06d}_{FOLDERS[folder]}_front.png"
        return PurePosixPath(folder, self.condition, self.split, self.folder, name)

    @property
    def key(self) -> tuple[str | int, ...]:
        """Key of the frame's random streams."""
        return (self.split, self.condition, self.case, self.map, self.point, self.number)


def plan(split: str, count: int) -> list[Frame]:
    """The frames of a split, in the order of their conditions and scenes.

    35 % of the frames show a corner case. Conditions and cases are dealt round robin along the
    diagonals of the 5 x 5 table of their pairs, so that even 15 frames hold each of both. A scene
    has four frames or more where the pair has as many. The published totals (3983 / 2005 / 1897)
    get the published numbers per condition and of corner cases.

    Args:
        split: ``train``, ``val`` or ``test``.
        count: frames in all, 0 or more.
    """
    even = tuple(count // 5 + (i < count % 5) for i in range(5))
    totals, corner = _PUBLISHED.get((split, count), (even, round(CORNER_SHARE * count)))
    cells = [(c, (c + turn) % 5) for turn in range(5) for c in range(5)]
    in_case = {cell: corner // 25 + (i < corner % 25) for i, cell in enumerate(cells)}

    frames: list[Frame] = []
    for c, condition in enumerate(CONDITIONS):
        cases = {case: in_case[c, k] for k, case in enumerate(CASES)}
        groups = {"": totals[c] - sum(cases.values()), **cases}
        point = 0
        for case, frames_left in groups.items():
            scenes = max(1, frames_left // SCENE_FRAMES) if frames_left else 0
            for i in range(scenes):
                size = frames_left // scenes + (i < frames_left % scenes)
                maps = MAPS[split]
                place = maps[point % len(maps)], point // len(maps) + 1
                frames += [
                    Frame(split, condition, *place, case, FIRST_FRAME + FRAME_STEP * n)
                    for n in range(size)
                ]
                point += 1
    return frames
