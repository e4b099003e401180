"""The files that a split consists of, checked for gaps before the first step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..errors import DataError
from ..tools.folders import matching, refuse_closed
from ..tools.names import name_bytes
from .described.absent import nothing_found
from .list_files import read_list
from .path_templates import (
    case_of,
    closer_templates,
    conditions_of,
    list_path,
    relative_path,
    sample_of,
    wildcard,
)
from .shares import split_of
from .spec import DatasetSpec, FileSpec, ModalitySpec, unknown_name

Missing = Literal["error", "zero", "skip"]

_LISTED = 20
"""Missing files that an error message names."""


@dataclass(frozen=True)
class SplitFiles:
    """The samples of one split: sorted by sample id, or in the order of the split's list file."""

    spec: DatasetSpec
    root: Path
    split: str
    modalities: tuple[ModalitySpec, ...]
    sample_ids: tuple[str, ...]
    """Paths without tag and suffix, such as ``cloud/val/MAP_4_point12/157550``."""
    absent: frozenset[tuple[str, str]] = frozenset()
    """(modality, sample id) of files that are missing and to be fed as zero."""
    left_out: int = 0
    """Samples that are not in the list because files of theirs are missing."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def path(self, index: int, file: FileSpec) -> Path:
        """Path of one file of sample ``index``."""
        return self.root / relative_path(self.spec, self.split, self.sample_ids[index], file)

    def paths(self, index: int, files: Sequence[FileSpec]) -> tuple[Path, ...]:
        """Paths of several files of sample ``index``."""
        return tuple(self.path(index, file) for file in files)

    def is_absent(self, index: int, modality: ModalitySpec) -> bool:
        """True if sample ``index`` lacks this modality."""
        return bool(self.absent) and (modality.name, self.sample_ids[index]) in self.absent

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the sample ids and what is absent: changes when files come or go."""
        lines = [*self.sample_ids, *(f"without {name} {i}" for name, i in sorted(self.absent))]
        return hashlib.sha256(name_bytes("\n".join(lines))).hexdigest()


@dataclass(frozen=True)
class Gap:
    """A file that is not there: of which sample, of which part (a modality, or ``label``)."""

    index: int
    part: str
    file: FileSpec


def list_split(
    spec: DatasetSpec,
    root: Path,
    split: str,
    modalities: Sequence[str] = (),
    conditions: Sequence[str] = (),
    cases: Sequence[str] = (),
    missing: Missing = "error",
) -> SplitFiles:
    """List a split and check that every sample has its label and all modalities.

    Filters compare whole parts of the path under ``root``: substrings would take every file of
    ``train`` for ``rain``. Where splits are folders, a sample counts if any of its files is there,
    so a gap cannot hide.

    Args:
        spec: of the data set.
        root: folder that holds it.
        split: one of ``spec.splits``.
        modalities: names to use, in order; none for all.
        conditions: keep samples with one of these values in each field that has such a value;
            none for all.
        cases: keep only scenes of these cases, ``normal`` included; none for all.
        missing: what to do without a file: refuse, note that of a modality in ``absent``, or leave
            the sample out.

    Raises:
        DataError: a name is unknown, nothing is found, or files are missing (with their number
            per modality and the first 20 paths).
    """
    files, gaps = scan_split(spec, root, split, modalities, conditions, cases)
    incomplete = {gap.index for gap in gaps}
    if missing == "skip" and len(incomplete) < len(files):
        kept = tuple(i for n, i in enumerate(files.sample_ids) if n not in incomplete)
        return replace(files, sample_ids=kept, left_out=len(incomplete))
    fatal = [gap for gap in gaps if missing != "zero" or gap.part == "label"]
    if fatal:
        raise _incomplete(files, fatal)
    return replace(files, absent=frozenset((gap.part, files.sample_ids[gap.index]) for gap in gaps))


def scan_split(
    spec: DatasetSpec,
    root: Path,
    split: str,
    modalities: Sequence[str] = (),
    conditions: Sequence[str] = (),
    cases: Sequence[str] = (),
) -> tuple[SplitFiles, list[Gap]]:
    """The samples of a split and every file of theirs that is missing; see ``list_split``.

    Raises:
        DataError: a name is unknown, or nothing is found.
    """
    chosen = spec.select(modalities)
    _check_names(spec, split, conditions, cases)
    if not os.path.isdir(root):
        refuse_closed(root)
        taken = root.exists()
        raise DataError(
            f"no data set at {root}: {'it is a file' if taken else 'the folder does not exist'}. "
            f"Set --data.root to a copy of {spec.name}{_synthetic(spec, 'DIR' if taken else root)}",
            "missing",
        )
    parts = {**{m.name: m.files for m in chosen}, "label": spec.label.files}
    everything = [file for fs in parts.values() for file in fs]
    found = {file: _samples_with(spec, root, split, file) for file in everything}
    if spec.split_list:
        candidates = read_list(spec, root, split, set().union(*found.values()))
    else:
        # by their bytes, which no locale changes
        candidates = sorted(set().union(*found.values()), key=name_bytes)
        if spec.shares:
            candidates = [name for name in candidates if split_of(spec, name) == split]
    wanted = [
        sample_id
        for sample_id in candidates
        if _has_conditions(spec, sample_id, conditions)
        and (not cases or case_of(spec, sample_id) in cases)
    ]
    if not wanted and spec.origin and not conditions:
        raise nothing_found(spec, root, split, found)
    if not wanted:
        raise _nothing(spec, root, split, (*conditions, *cases), parts)
    gaps = [
        Gap(index, part, file)
        for part, files in parts.items()
        for file in files
        for index, sample_id in enumerate(wanted)
        if sample_id not in found[file]
    ]
    return SplitFiles(spec, root, split, chosen, tuple(wanted)), gaps


def _check_names(
    spec: DatasetSpec, split: str, conditions: Sequence[str], cases: Sequence[str]
) -> None:
    known_conditions = [value for condition in spec.conditions for value in condition.values]
    for kind, names, known in (
        ("split", (split,), spec.splits),
        ("condition", conditions, known_conditions),
        ("case", cases, ("normal", *spec.cases)),
    ):
        for name in names:
            if name not in known:
                raise unknown_name(f"{kind} of {spec.name}", name, known)


def _has_conditions(spec: DatasetSpec, sample_id: str, wanted: Sequence[str]) -> bool:
    return not wanted or all(
        value in wanted or not set(wanted) & set(condition.values)
        for condition, value in zip(spec.conditions, conditions_of(spec, sample_id), strict=True)
    )


def _samples_with(spec: DatasetSpec, root: Path, split: str, file: FileSpec) -> set[str]:
    """Ids of the samples that have this file."""
    ids = set()
    closer = closer_templates(spec, file)
    for path in matching(root, wildcard(spec, split, file)):
        sample_id = sample_of(spec, split, file, path)
        # names that start with a dot are leftovers of archive tools
        if sample_id is None or path.rpartition("/")[2].startswith("."):
            continue
        if not any(sample_of(spec, split, other, path) for other in closer):
            ids.add(sample_id)
    return ids


def _nothing(
    spec: DatasetSpec,
    root: Path,
    split: str,
    filters: Sequence[str],
    parts: Mapping[str, tuple[FileSpec, ...]],
) -> DataError:
    example = spec.path_template.replace("{split}", split)
    folders = dict.fromkeys(file.folder for files in parts.values() for file in files)
    source = f" of {list_path(spec, root, split)}" if spec.split_list else ""
    return DataError(
        f"no sample of split {split!r}{' with ' + ' '.join(filters) if filters else ''}{source} "
        f"under {root}; expected files {example} in the folders {', '.join(folders)}. "
        f"{_nearby(root, folders)}Check --data.root{_synthetic(spec, 'DIR')}",
        "missing",
    )


def beside(path: Path) -> str:
    """A note on files that differ from a missing one in their suffix only."""
    try:
        others = [p.name for p in path.parent.iterdir() if p.stem == path.stem and p != path]
    except OSError:
        return ""
    return f" (there is {', '.join(sorted(others))})" if others else ""


def _nearby(root: Path, folders: Iterable[str]) -> str:
    """The folder above or below that looks like the root of the data set."""

    def looks_right(place: Path) -> bool:
        return sum((place / folder).is_dir() for folder in folders) >= 2

    if looks_right(root):
        return ""
    with suppress(OSError):
        for place in (root.absolute().parent, *sorted(root.iterdir())):
            if looks_right(place):
                return f"Did you mean {place}? "
    return ""


def _synthetic(spec: DatasetSpec, out: Path | str) -> str:
    """The other way to get data, where there is one."""
    if not spec.name.startswith("deliver"):
        return f". {spec.hint}" if spec.hint else ""
    return f", or make a synthetic one: python -m fastseg.data synthetic --out {out}"


def _incomplete(files: SplitFiles, gaps: Sequence[Gap]) -> DataError:
    counts = []
    for part in dict.fromkeys(gap.part for gap in gaps):
        mine = [gap for gap in gaps if gap.part == part]
        folders = {files.root / gap.file.folder for gap in mine}
        gone = "".join(f", folder {f} does not exist" for f in sorted(folders) if not f.is_dir())
        counts.append(f"{part}: {len({gap.index for gap in mine})} of {len(files)}{gone}")
    paths = [files.path(gap.index, gap.file) for gap in gaps[:_LISTED]]
    lines = [f"  {path}{beside(path)}" for path in paths]
    if len(gaps) > _LISTED:
        lines.append(f"  and {len(gaps) - _LISTED} more")
    if files.spec.split_list:
        source = list_path(files.spec, files.root, files.split)
        lines.append(
            f"Samples are those of {source}: up to the first space of each line, or the whole line "
            "where files have that name."
        )
    return DataError(
        f"{len(gaps)} files of split {files.split!r} are missing ({'; '.join(counts)}):\n"
        + "\n".join(lines)
        + "\nRestore them, or let python -m fastseg.train leave the modality out with "
        "--data.modalities, feed what is missing as zero with --data.missing zero, or leave these "
        "samples out with --data.missing skip"
        + (f". {files.spec.hint}" if files.spec.hint else ""),
        "missing",
    )
