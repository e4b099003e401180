"""Sentences about classes and scenes, from names and label maps.

Any2Seg (arXiv:2407.11351) describes a scene by a caption that LLaMA-Adapter writes from its images.
Those captions are not published. ``Prompts.scene`` stands in for them: it names the classes of the
label map, which are ground truth, and the conditions that the data set states.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastseg.errors import ConfigError

_BETWEEN = re.compile(r"[_\s]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a word of a name ends and the next begins."""


@dataclass(frozen=True)
class Prompts:
    """Forms of the sentences.

    Raises:
        ConfigError: a form is empty, has no place for a class, or names no class.
    """

    of_class: str = "a photo of {}"
    """Of a class, whose name takes the place of ``{}`` (CLIP, arXiv:2103.00020, section 3.1.4)."""
    of_scene: str = "a photo of a street scene"
    """Beginning of the sentence of a scene."""
    most_classes: int = 12
    """Classes that the sentence of a scene names at most, those of the largest area; 77 tokens are
    all that CLIP reads."""

    def __post_init__(self) -> None:
        if self.of_class.count("{}") != 1 or not self.of_scene.strip():
            raise ConfigError(
                f"prompts {self.of_class!r} and {self.of_scene!r}: expected one {{}} in the first, "
                "the place of the class, and words in the second"
            )
        if self.most_classes < 1:
            raise ConfigError(f"most_classes must be at least 1, got {self.most_classes}")

    def classes(self, names: Sequence[str]) -> list[str]:
        """One sentence per class: ``a photo of traffic sign``."""
        return [self.of_class.replace("{}", spoken(name)) for name in names]

    def scene(self, names: Sequence[str], conditions: Sequence[str] = ()) -> str:
        """``a photo of a street scene, night, with road, sky and cars``.

        Args:
            names: the classes of the scene, the largest first.
            conditions: such as the weather; empty ones are left out.
        """
        sentence = ", ".join([self.of_scene, *map(spoken, filter(None, conditions))])
        *others, last = [spoken(name) for name in names[: self.most_classes]] or [""]
        if not last:
            return sentence
        comma = "," if any(conditions) else ""
        return f"{sentence}{comma} with {', '.join(others)}{' and ' if others else ''}{last}"


def spoken(name: str) -> str:
    """The words of a name in lower case: ``traffic sign`` of ``TrafficSign``, ``traffic_sign``."""
    return _BETWEEN.sub(" ", name).strip().lower()


def classes_by_area(label: NDArray[np.uint8], num_classes: int) -> list[int]:
    """Train ids in a label map ``[H, W]``, the most pixels first; ignored pixels do not count."""
    pixels = np.bincount(label.ravel(), minlength=num_classes)[:num_classes]
    order = np.argsort(-pixels, kind="stable")
    return [int(train_id) for train_id in order if pixels[train_id]]
