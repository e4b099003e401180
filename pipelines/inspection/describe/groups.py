"""Files below a folder, sorted into groups that pair: one group for each sensor and the label."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...datasets.described.templates import ARRAYS, IMAGES
from ...errors import DataError
from ...tools.folders import closed

SPLITS = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"dev": "val", "test": "test", "testing": "test"},
}
"""Names of folders and lists, and the split that each stands for."""

_MOST_TAILS = 6
_STEM = re.compile(r"(?P<base>.+?)(?P<tail>(?:[_-][A-Za-z][A-Za-z0-9]*)*)")
Key = tuple[str, ...]
"""Values of the fields of a sample: the split first, if splits are folders."""


@dataclass
class Group:
    """Files of one kind.

    Attributes:
        name: of the folder, or what ends the file names.
        template: path with fields.
        files: path under the root, by the sample.
    """

    name: str
    template: str
    files: dict[Key, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The groups that pair, and what is left out.

    Attributes:
        groups: the largest first.
        folders: folder of each split; empty if splits are no folders.
        left: number of files that pair with nothing, with an example.
    """

    groups: tuple[Group, ...]
    folders: dict[str, str]
    left: tuple[int, str]


@dataclass(frozen=True)
class _File:
    path: str
    split: int
    """Place of the folder that is called like a split; -1 for none."""
    parts: tuple[str, ...]
    """The other folders."""
    stem: str
    suffix: str


def find_groups(root: Path) -> Found:
    """The groups of a folder.

    Raises:
        DataError: there are no images or arrays, or no two groups pair.
    """
    files = list_files(root)
    if not files:
        raise DataError(
            f"no images or arrays under {root}; expected {', '.join(IMAGES + ARRAYS)} files of at "
            "least one sensor, and a PNG label for each. Check --root",
            "missing",
        )
    depth = Counter(len(file.parts) for file in files).most_common(1)[0][0]
    even = [file for file in files if len(file.parts) == depth]
    tries = [_grouped(even, place) for place in (range(depth) if depth else [-1])]
    groups = max(tries, key=_pairs)
    kept = _paired(groups)
    if len(kept) < 2:
        names = ", ".join(sorted(group.template for group in groups)[:8])
        raise DataError(
            f"the files under {root} do not pair: {names}. Expected a folder for each sensor and "
            "for the labels, with equal file names in them, or endings such as 7_rgb.png and "
            "7_label.png. Sort them so, or write the description by hand: "
            "docs/reference/data-set-files.md",
            "missing",
        )
    used = {path for group in kept for path in group.files.values()}
    lonely = sorted(file.path for file in files if file.path not in used)
    return Found(tuple(kept), _split_folders(even), (len(lonely), lonely[0] if lonely else ""))


def list_files(root: Path) -> list[_File]:
    """Every image and array below a folder, hidden ones and the packed cache left out."""

    def refuse(error: OSError) -> None:
        raise closed(error.filename or str(root), error) from error

    found = []
    for place, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "packed")
        inside = os.path.relpath(place, root)
        parts = () if inside == "." else tuple(inside.split(os.sep))
        split = next((i for i, part in enumerate(parts) if part.lower() in SPLITS), -1)
        others = tuple(part for i, part in enumerate(parts) if i != split)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGES + ARRAYS and not name.startswith("."):
                found.append(_File("/".join((*parts, name)), split, others, stem, suffix))
    return found


def _grouped(files: Sequence[_File], place: int) -> list[Group]:
    """Groups by the folder at a place, the suffix, and what the file names end with."""
    rough: dict[tuple[str, str, int], list[_File]] = defaultdict(list)
    for file in files:
        folder = file.parts[place] if place >= 0 else ""
        rough[folder, file.suffix, file.split].append(file)
    varying = [
        i
        for i in range(len(files[0].parts))
        if i != place and len({file.parts[i] for file in files}) > 1
    ]
    groups: dict[str, Group] = {}
    for (folder, suffix, split), members in rough.items():
        tails = _use_tails(members)
        head = _common_head(members)
        for file in members:
            base, tail = _cut(file.stem) if tails else (file.stem, "")
            fields = [_field(varying.index(i)) if i in varying else part for i, part in
                      enumerate(file.parts)]  # fmt: skip
            key = (*(file.parts[i] for i in varying), base.removeprefix(head))
            if split >= 0:
                fields.insert(split, "{split}")
                key = (file.path.split("/")[split], *key)
            template = "/".join((*fields, f"{head}{{name}}{tail}{suffix}"))
            name = folder or tail.strip("_-") or "image"
            if tails and len(tails) > 1 and folder and tail:
                name = tail.strip("_-")
            groups.setdefault(template, Group(name, template)).files[key] = file.path
    return list(groups.values())


def _field(number: int) -> str:
    return "{scene}" if number == 0 else f"{{scene{number + 1}}}"


def _cut(stem: str) -> tuple[str, str]:
    match = _STEM.fullmatch(stem)
    return (match["base"], match["tail"]) if match else (stem, "")


def _use_tails(files: Sequence[_File]) -> set[str]:
    """What file names end with, if it tells kinds of files apart or all end alike."""
    cuts = [_cut(file.stem) for file in files]
    tails = {tail for _, tail in cuts}
    bases = Counter((file.parts, base) for file, (base, _) in zip(files, cuts, strict=True))
    paired = sum(count > 1 for count in bases.values()) >= len(bases) / 2
    return tails if len(tails) <= _MOST_TAILS and (len(tails) == 1 or paired) else set()


def _common_head(files: Sequence[_File]) -> str:
    """A word with ``_`` or ``-`` behind it with which all file names start."""
    heads = {match[0] if (match := re.match(r"[A-Za-z]+[_-](?=.)", f.stem)) else "" for f in files}
    head = heads.pop()
    return head if not heads and all(len(_cut(f.stem)[0]) > len(head) for f in files) else ""


def _pairs(groups: Sequence[Group]) -> int:
    """Files that have a partner in another group."""
    counts = Counter(key for group in groups for key in group.files)
    return sum(count for count in counts.values() if count > 1)


def _paired(groups: Sequence[Group]) -> list[Group]:
    """The groups that share half of their samples with the one that shares most."""
    counts = Counter(key for group in groups for key in group.files)
    first = max(groups, key=lambda group: sum(counts[key] - 1 for key in group.files))
    return [
        group
        for group in sorted(groups, key=lambda g: (-len(g.files), g.template))
        if len(group.files.keys() & first.files.keys()) * 2 >= len(first.files)
        and ("{split}" in group.template) == ("{split}" in first.template)
    ]


def _split_folders(files: Sequence[_File]) -> dict[str, str]:
    """Folder of each split, by the names that folders have."""
    names = {file.path.split("/")[file.split] for file in files if file.split >= 0}
    order = sorted(names, key=lambda name: list(SPLITS).index(name.lower()))
    folders: dict[str, str] = {}
    for name in order:
        folders.setdefault(SPLITS[name.lower()], name)
    return folders
