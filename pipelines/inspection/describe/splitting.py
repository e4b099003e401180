"""Splits of a folder: folders or lists that are called like one, else shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...datasets.described.templates import fields
from ...datasets.shares import share_of
from ...errors import DataError
from ...tools.reading import read_bytes
from .groups import SPLITS, Found, Group

SHARES = {"train": 0.8, "val": 0.2}
"""Where nothing tells."""
_SEEDS = 1000
_LISTS = (".txt", ".lst")


def guess_splits(root: Path, found: Found, label: Group) -> tuple[dict[str, Any], str]:
    """The table of splits, and what to say about it."""
    if "{split}" in label.template:
        there = {key[0] for key in label.files}
        folders = {split: name for split, name in found.folders.items() if name in there}
        return {"folders": folders}, f"splits: the folders {', '.join(folders.values())}"
    lists, line = _lists(root, found, label)
    if lists:
        values: dict[str, Any] = {"lists": lists} | ({"line": line} if line else {})
        return values, f"splits: the lists {', '.join(lists.values())}"
    seed, parts = _shared(["/".join(key) for key in label.files])
    count = len(label.files)
    text = (
        f"splits: none was found; {count} samples are dealt out by their names, 80 to 20: "
        f"{parts['train']} to train and {parts['val']} to val"
    )
    return {"shares": SHARES} | ({"seed": seed} if seed else {}), text


def split_notes(splits: dict[str, Any], sensors: Sequence[Group], label: Group) -> list[str]:
    """What to look at: splits that are missing, or have no labels.

    Args:
        splits: the table.
        sensors: groups of the sensors.
        label: group of the labels.
    """
    there = [name for way in ("folders", "lists", "shares") for name in splits.get(way, ())]
    notes = []
    if "val" not in there and "test" in there:
        command = "python -m fastseg.train --data.eval-split test"
        notes.append(f"there is no split val: {command} scores test")
    elif "val" not in there:
        notes.append("there is no split val: name one, or split by shares")
    if "train" not in there:
        notes.append("there is no split train: name one, or split by shares")
    if "folders" in splits:
        labelled = {key[0] for key in label.files}
        bare = sorted({key[0] for one in sensors for key in one.files} - labelled)
        if bare:
            notes.append(
                f"{', '.join(bare)}: no labels, and left out; predict it with "
                "python -m fastseg.predict"
            )
    return notes


def _shared(names: Sequence[str]) -> tuple[int, Counter[str]]:
    """The first seed with which every share has a sample, and the samples of each.

    Raises:
        DataError: there are too few samples.
    """
    for seed in range(_SEEDS if len(names) >= len(SHARES) else 0):
        parts = Counter(share_of(list(SHARES.items()), seed, name) for name in names)
        if all(parts[split] for split in SHARES):
            return seed, parts
    raise DataError(
        f"too few samples to deal out to {' and '.join(SHARES)}: {len(names)}; add samples, "
        "or write lists of both, train.txt and val.txt, with a name in each line",
        "missing",
    )


def _lists(root: Path, found: Found, label: Group) -> tuple[dict[str, str], str]:
    """List files called like splits whose lines name samples, and what lines are like."""
    lists: dict[str, str] = {}
    form = ""
    for path in sorted([*root.glob("*"), *root.glob("*/*")]):
        split = SPLITS.get(path.stem.lower(), "")
        if path.suffix.lower() not in _LISTS or not split or split in lists:
            continue
        text = read_bytes(path).decode("utf-8-sig", "replace")
        words = [line.split()[0] for line in text.splitlines() if line.split()]
        for candidate in _forms(found, label):
            if words and all(word in candidate[1] for word in words[:100]):
                lists[split], form = path.relative_to(root).as_posix(), candidate[0]
                break
    order = list(dict.fromkeys(SPLITS.values()))
    return dict(sorted(lists.items(), key=lambda pair: order.index(pair[0]))), form


def _forms(found: Found, label: Group) -> list[tuple[str, set[str]]]:
    """What a line may look like, and all lines of that form."""
    plain = {"/".join(key) for key in label.files}
    forms = [("", plain)] if fields(label.template) else []
    for group in found.groups:
        names = {path.rpartition("/")[2] for path in group.files.values()}
        last = group.template.rpartition("/")[2]
        forms.append((group.template, set(group.files.values())))
        if len(fields(group.template)) == 1:
            forms += [
                (last, names),
                (last.rpartition(".")[0], {n.rpartition(".")[0] for n in names}),
            ]
    return forms
