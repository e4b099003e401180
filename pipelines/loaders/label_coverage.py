"""Check that the labels of a split have anything to teach: two or more classes must occur."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import numpy as np

from ..datasets.spec import DatasetSpec
from ..datasets.split_files import SplitFiles
from ..decode.images import Pixels
from ..errors import DataError
from .samples import Store

_SAMPLES = 64
"""Labels that are looked at before training, at most."""


def train_ids(label: Pixels) -> list[int]:
    """The train ids that occur in a label ``[H, W]`` uint8, the ignore index among them."""
    return np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist()


def label_fault(spec: DatasetSpec, split: str, seen: Collection[int], labels: int) -> str:
    """Message about a split in whose labels fewer than two classes occur; empty for more.

    Args:
        spec: spec of the data set.
        split: name of the split.
        seen: train ids that occur, the ignore index among them.
        labels: number of labels that were looked at.
    """
    classes = sorted(set(seen) - {spec.ignore_index})
    if not labels or len(classes) > 1:
        return ""
    found = f"{spec.classes[classes[0]]} is the only class" if classes else "every pixel is ignored"
    return (
        f"split {split!r}: {found} in all {labels} labels that were looked at; there is nothing to "
        "learn or to score. Usual causes: labels painted in colours, labels of another id "
        "convention, the wrong --data.dataset. See the classes with python -m fastseg.data stats"
    )


def label_warning(files: SplitFiles, store: Store) -> str:
    """``label_fault`` of up to 64 labels, spread evenly over a split.

    Most often one label is read, because the first with two classes ends the search. Labels that
    cannot be read are left to whoever needs them.
    """
    seen: set[int] = set()
    labels = 0
    for index in range(0, len(files), -(-len(files) // _SAMPLES)):
        with suppress(DataError):
            seen.update(train_ids(store.label(index)))
            labels += 1
        if len(seen - {files.spec.ignore_index}) > 1:
            break
    return label_fault(files.spec, files.split, seen, labels)
