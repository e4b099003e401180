"""A report with a bit of everything, and a reader of its page."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import combinations

import numpy as np

from fastseg.report.details import DetailTable
from fastseg.report.results import Picture, RunReport, SubsetResult
from tests.support.example_scores import CLASSES, COMPARED, RESULTS

PALETTE = np.array([[128, 64, 128], [70, 130, 180], [220, 20, 60]], np.uint8)
VOID = ("meta", "img", "input", "br", "link")


def make_picture(size: int = 24, sensors: dict[str, str] | None = None) -> Picture:
    """Noise in every image; without ``sensors`` two of them, and no prediction from R alone."""
    noise = np.random.default_rng(5)
    label = noise.integers(0, 3, (size, size)).astype(np.uint8)
    label[:4] = 255
    names = sensors or {"img": "R", "depth": "D"}
    images = {m: noise.integers(0, 256, (size, size, 3)).astype(np.uint8) for m in names}
    subsets = all_subsets("".join(names.values())) if sensors else ["RD", "D"]
    guesses = {(m, s): noise.integers(0, 3, (size, size)).astype(np.uint8)
               for m in ("teacher", "student") for s in subsets}  # fmt: skip
    return Picture("night/000_front", images, label, guesses)


def all_subsets(letters: str) -> list[str]:
    """Names of all subsets of some letters."""
    sizes = range(1, len(letters) + 1)
    return ["".join(chosen) for size in sizes for chosen in combinations(letters, size)]


def make_history() -> list[dict[str, object]]:
    """Five rows of training and validation of each of two stages."""
    rows: list[dict[str, object]] = []
    for stage in ("teacher", "student"):
        for step in range(10, 60, 10):
            rows.append({"kind": "train", "stage": stage, "step": step, "loss": 60 / step,
                         "ohem": 50 / step, "kl": 1.0 / step, "lr": 1e-3,
                         "images_per_s": 50.0, "data_wait": 0.02,
                         "modality_steps": {"img": 10.0, "depth": 5.0}})  # fmt: skip
            rows.append({"kind": "eval", "stage": stage, "step": step, "subset": "RD",
                         "miou_all": step / 100, "miou_present": step / 90})  # fmt: skip
    return rows


def make_report() -> RunReport:
    """A finished run of two sensors and three classes."""
    return RunReport(
        title="a demo <run>",
        config={"name": "demo", "optim": {"lr": 0.00123}},
        history=make_history(),
        results=RESULTS,
        classes=CLASSES,
        palette=PALETTE,
        confusions={m: np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]]) for m in ("teacher", "student")},
        pictures=[make_picture()],
        facts={"command": "python -m fastseg.train --seed 7", "seed": "7"},
        compared=COMPARED,
    )


def make_large_report() -> RunReport:
    """The same with four sensors, all 15 subsets, conditions, and another run beside it."""
    sensors = {"img": "R", "depth": "D", "event": "E", "lidar": "L"}
    subsets = all_subsets("RDEL")
    results = [
        SubsetResult(model, subset, score, score, (score, score / 2, 0.0))
        for model, gain in (("teacher", 0.0), ("student", 0.1))
        for subset, score in ((s, 0.2 * len(s) + gain) for s in subsets)
    ]
    small = make_report()
    pictures = [make_picture(sensors=sensors), make_picture(40, sensors)]
    conditions = DetailTable(
        "mIoU by condition of the student\nOver the classes that occur.",
        tuple(subsets),
        {f"{name}, 3 samples": [10.0 * len(s) for s in subsets] for name in ("fog", "night")},
    )
    return RunReport(
        title="four sensors",
        config={"name": "four", "optim": {"lr": 0.1}},
        history=make_history(),
        results=results,
        classes=CLASSES,
        palette=PALETTE,
        confusions=small.confusions,
        pictures=pictures,
        facts=small.facts | {"versions": "a-name-without-a-place-to-break-" * 6},
        compared=COMPARED,
        conditions=[conditions],
        beside={"demo": small},
    )


class Page(HTMLParser):
    """Checks that every element is closed, and collects elements, their attributes and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    @property
    def tags(self) -> list[str]:
        """Names of all elements."""
        return [tag for tag, _ in self.elements]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open and close it."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the text that a reader sees."""
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def get(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]
