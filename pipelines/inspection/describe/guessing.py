"""From groups of files to a description: which is the label, what classes and splits there are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...decode.painted import unpacked
from ...errors import DataError
from .groups import Group, find_groups
from .looking import Looks, look_at
from .splitting import guess_splits, split_notes

_LABEL = re.compile(r"label|mask|(^|[_-])gt($|[_-])|ground.?truth|annot|semantic|seg|class", re.I)
_KINDS = (
    ("event", re.compile(r"event|dvs", re.I)),
    ("lidar", re.compile(r"lidar|velodyne", re.I)),
    ("camera", re.compile(r"rgb|img|image|cam|colou?r|photo|left|frame|vis", re.I)),
)
_VOID = 0.05
"""Black that covers less than this share of painted labels is taken for unlabelled."""


@dataclass(frozen=True)
class Guess:
    """A description to be written, and what to say about it.

    Attributes:
        values: the tables of the file.
        said: lines for people: what was found, how sure it is.
        edit: lines for people: what to look at.
    """

    values: dict[str, Any]
    said: list[str]
    edit: list[str]


def guess(root: Path, samples: int) -> Guess:
    """Look at a folder and guess its description.

    Args:
        root: folder of a data set.
        samples: files of each group whose pixels are measured.

    Raises:
        DataError: nothing pairs, no group looks like labels, or a file cannot be read.
    """
    found = find_groups(root)
    looks = {group.name: look_at(root, group, samples) for group in found.groups}
    label, why = _label(found.groups, looks)
    seen = looks[label.name]
    sensors = [group for group in found.groups if group is not label]
    classes, ignored, notes = _classes(seen)
    splits, split_said = guess_splits(root, found, label)
    notes += split_notes(splits, sensors, label)
    said = [
        f"{group.name}: {len(group.files)} files {group.template}, "
        + _looks(looks[group.name], len(group.files))
        for group in found.groups
    ]
    said += [f"label: {label.name} ({why}), coding {seen.coding}, {len(classes)} classes"]
    if seen.counted < len(label.files):
        said[-1] += f" in {seen.counted} of {len(label.files)} files, evenly spread"
        notes += ["values that other label files have: fastseg.data check finds them"]
    said += [split_said]
    count, example = found.left
    if count:
        said.append(f"left out: {count} files that pair with nothing, such as {example}")
    names = _names(sensors)
    values: dict[str, Any] = {
        "sensors": [
            _sensor(name, group, looks[group.name], seen)
            for name, group in zip(names, sensors, strict=True)
        ],
        "label": {"files": label.template, "coding": seen.coding, "ignored": ignored},
        "classes": classes,
        "splits": splits,
    }
    edit = ["names and colours of the classes", "kind of each sensor, scale and unit of its codes"]
    return Guess(values, said, [*edit, *notes])


def _label(groups: Sequence[Group], looks: dict[str, Looks]) -> tuple[Group, str]:
    """The group that looks most like labels, and why."""

    def points(group: Group) -> tuple[int, list[str]]:
        seen, reasons, score = looks[group.name], [], 0
        if seen.values is None:
            return -1, []
        if len(seen.values) > 1:
            score, reasons = 2, [f"{len(seen.values)} values or colours"]
        if seen.palette:
            score, reasons = score + 2, [*reasons, "a palette"]
        if _LABEL.search(group.name):
            score, reasons = score + 2, [*reasons, "its name"]
        return score, reasons

    best = max(groups, key=lambda group: points(group)[0])
    score, reasons = points(best)
    if score < 2:
        raise DataError(
            f"none of {', '.join(g.template for g in groups)} looks like labels; expected 8-bit "
            "PNG files with ids, a palette or a few colours. Labels as JPEG have lost their "
            "values: make them anew; others describe by hand: docs/reference/data-set-files.md",
            "label",
        )
    rivals = [g.name for g in groups if g is not best and points(g)[0] == score]
    sure = f", but so looks {rivals[0]}" if rivals else ", sure" if score >= 4 else ", likely"
    return best, " and ".join(reasons) + sure


def _looks(seen: Looks, count: int) -> str:
    """What the files of a group are like, and how many of the ``count`` were looked at."""
    sizes = [f"{width} x {height}" for (height, width), _ in seen.sizes.most_common(3)]
    more = f" and {len(seen.sizes) - 3} more" if len(seen.sizes) > 3 else ""
    depths = " or ".join(f"{depth}-bit" for depth in sorted(seen.depths)) or "array"
    one = "one size" if len(seen.sizes) == 1 else f"{len(seen.sizes)} sizes"
    text = f"{depths}, {seen.channels} channel{'s' * (seen.channels > 1)}, {one}: " + (
        ", ".join(sizes) + more
    )
    read = seen.headers or seen.examined
    return f"{text} (in {read}, pixels of {seen.examined})" if read < count else text


def _names(groups: Sequence[Group]) -> list[str]:
    names: list[str] = []
    for group in groups:
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", group.name).lstrip("_-.") or "sensor"
        name, number = plain, 2
        while name in names or name == "label":
            name, number = f"{plain}{number}", number + 1
        names.append(name)
    return names


def _sensor(name: str, group: Group, seen: Looks, label: Looks) -> dict[str, Any]:
    """The table of a sensor: only what is not the default."""
    values: dict[str, Any] = {"name": name, "files": group.template}
    fits = (kind for kind, words in _KINDS if words.search(group.name))
    kind = next(fits, "camera" if seen.channels >= 3 and seen.depths == {8} else "other")
    if kind == "camera" and seen.depths != {8}:
        kind = "other"
    values["kind"] = kind
    if kind in ("event", "lidar"):
        values["interpolation"] = "nearest"
    scale = 1.0
    if seen.depths:
        bits = sorted(seen.depths & {8, 16}) or [8]
        values["bits"] = bits[0] if len(bits) == 1 else bits
        scale = 1 / (65535 if 16 in bits else 255)
    elif seen.channels < 3:
        values["channels"] = 0
    count = 1 if not seen.depths and seen.channels < 3 else 3
    mean = [round(value * scale, 6) for value in seen.mean]
    std = [max(round(value * scale, 6), 1e-6) for value in seen.std]
    if not any(seen.std):
        std = [1.0] * len(std)
    spread = (mean * 3, std * 3) if len(mean) == 1 else (mean, std)
    values["mean"], values["std"] = spread[0][:count], spread[1][:count]
    if set(seen.sizes) != set(label.sizes):
        values["any_size"] = True
    return values


def _classes(seen: Looks) -> tuple[list[dict[str, Any]], list[Any], list[str]]:
    """The classes of a label, what is ignored, and notes about it."""
    counts = dict(seen.values or {})
    total, notes = sum(counts.values()) or 1, []
    ignored: list[Any] = []
    if seen.coding == "colours":
        if 0 in counts and counts[0] < _VOID * total:
            counts.pop(0)
            ignored = [[0, 0, 0]]
            notes.append("black was taken for unlabelled: make it a class if it is one")
        return (
            [{"name": f"class_{n}", "colour": list(unpacked(c))} for n, c in enumerate(counts)],
            ignored,
            notes,
        )
    ignored = [255] if 255 in counts and len(counts) > 2 else []
    if ignored:
        counts.pop(255)
        notes.append("255 was taken for unlabelled: make it a class if it is one")
    if 0 in counts:
        notes.append("0 is a class: move it to ignored if it means unlabelled")
    classes: list[dict[str, Any]] = [{"name": f"class_{v}", "ids": [v]} for v in counts]
    colours = [seen.colours.get(value) for value in counts]
    if None not in colours and len(set(colours)) == len(colours):
        for one, colour in zip(classes, colours, strict=True):
            one["colour"] = list(colour or ())
    elif seen.palette:
        notes.append("palettes differ between files or repeat a colour: none was taken over")
    return classes, ignored, notes
