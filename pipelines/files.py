"""Which files a split consists of, checked for gaps before the first step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import DataError
from .spec import DatasetSpec, LabelSpec, ModalitySpec, unknown_name

_LISTED = 20
"""Missing files that an error message names."""


@dataclass(frozen=True)
class SplitFiles:
    """The samples of one split, sorted by sample id."""

    spec: DatasetSpec
    root: Path
    split: str
    modalities: tuple[ModalitySpec, ...]
    sample_ids: tuple[str, ...]
    """Paths without tag and suffix, such as ``cloud/val/MAP_4_point12/157550``."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def path(self, index: int, part: ModalitySpec | LabelSpec) -> Path:
        """File of sample ``index`` for a modality or the label."""
        fields = parse_sample_id(self.spec, self.sample_ids[index])
        relative = self.spec.layout.format(**fields, folder=part.folder, tag=part.tag)
        return self.root / relative

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the sample ids: changes when samples are added, removed or renamed."""
        return hashlib.sha256("\n".join(self.sample_ids).encode()).hexdigest()


def list_split(
    spec: DatasetSpec,
    root: Path,
    split: str,
    modalities: Sequence[str] = (),
    conditions: Sequence[str] = (),
    cases: Sequence[str] = (),
) -> SplitFiles:
    """List a split and check that every sample has its label and all modalities.

    Filters compare whole parts of the path under ``root``: substrings would take every file of
    ``train`` for ``rain``. A sample counts if any of its files is there, so a gap cannot hide.

    Args:
        spec: the data set's layout.
        root: folder that holds it.
        split: one of ``spec.splits``.
        modalities: names to use, in order; none for all.
        conditions: keep only these values of the field ``condition``; none for all.
        cases: keep only scenes of these cases, ``normal`` included; none for all.

    Raises:
        DataError: a name is unknown, nothing is found, or files are missing (with their number
            per modality and the first 20 paths).
    """
    chosen = spec.select(modalities)
    known_cases = ("normal", *spec.cases)
    for kind, names, known in (
        ("split", (split,), spec.splits),
        ("condition", conditions, spec.conditions),
        ("case", cases, known_cases),
    ):
        for name in names:
            if name not in known:
                raise unknown_name(f"{kind} of {spec.name}", name, known)
    if not root.is_dir():
        raise DataError(
            f"no data set at {root}: the folder does not exist. Set --data.root to a copy of "
            f"{spec.name}, or make a synthetic one: python -m fastseg.data synthetic --out {root}"
        )

    parts: dict[str, ModalitySpec | LabelSpec] = {m.name: m for m in chosen}
    parts["label"] = spec.label
    found = {name: _list_part(spec, root, split, part) for name, part in parts.items()}
    wanted = [
        sample_id
        for sample_id in sorted(set().union(*found.values()))
        if (not conditions or condition_of(spec, sample_id) in conditions)
        and (not cases or case_of(spec, sample_id) in cases)
    ]
    if not wanted:
        example = spec.layout.replace("{split}", split)
        filters = " ".join((*conditions, *cases))
        raise DataError(
            f"no sample of split {split!r}{' with ' + filters if filters else ''} under {root}; "
            f"expected files {example} in the folders "
            f"{', '.join(part.folder for part in parts.values())}. Check --data.root, or make a "
            f"synthetic set: python -m fastseg.data synthetic --out DIR"
        )
    files = SplitFiles(spec, root, split, chosen, tuple(wanted))
    _check_complete(files, parts, found)
    return files


def parse_sample_id(spec: DatasetSpec, sample_id: str) -> dict[str, str]:
    """The fields of a sample id, such as condition, split, scene and frame.

    Raises:
        DataError: the id does not have the form that the spec states.
    """
    match = re.fullmatch(_pattern(spec.sample_id), sample_id)
    if match is None:
        raise DataError(f"{sample_id!r} is no sample id of {spec.name} ({spec.sample_id})")
    return match.groupdict()


def condition_of(spec: DatasetSpec, sample_id: str) -> str:
    """Weather or time of day of a sample; empty where the data set has none."""
    return parse_sample_id(spec, sample_id).get("condition", "")


def case_of(spec: DatasetSpec, sample_id: str) -> str:
    """Sensor failure of a sample's scene, or ``normal``."""
    ending = parse_sample_id(spec, sample_id).get("scene", "").rpartition("_")[2]
    return ending if ending in spec.cases else "normal"


def _pattern(template: str, values: Mapping[str, str] | None = None) -> str:
    """Regular expression of a template: known fields literal, the others within one component."""
    known = values or {}
    pieces = re.split(r"\{(\w+)\}", template)  # text and field names take turns
    for i in range(1, len(pieces), 2):
        name = pieces[i]
        pieces[i] = re.escape(known[name]) if name in known else rf"(?P<{name}>[^/]+)"
    pieces[::2] = [re.escape(text) for text in pieces[::2]]
    return "".join(pieces)


def _list_part(
    spec: DatasetSpec, root: Path, split: str, part: ModalitySpec | LabelSpec
) -> set[str]:
    """Ids of the samples that have a file in this part's folder."""
    values = {"folder": part.folder, "split": split, "tag": part.tag}
    wildcard = re.sub(r"\{(\w+)\}", lambda m: values.get(m.group(1), "*"), spec.layout)
    regex = re.compile(_pattern(spec.layout, values))
    ids = set()
    for path in root.glob(wildcard):
        match = regex.fullmatch(path.relative_to(root).as_posix())
        # names that start with a dot are leftovers of archive tools
        if match is not None and not path.name.startswith("."):
            ids.add(spec.sample_id.format(**match.groupdict(), split=split))
    return ids


def _check_complete(
    files: SplitFiles,
    parts: Mapping[str, ModalitySpec | LabelSpec],
    found: Mapping[str, set[str]],
) -> None:
    missing = [
        (name, index)
        for name in parts
        for index, sample_id in enumerate(files.sample_ids)
        if sample_id not in found[name]
    ]
    if not missing:
        return
    counts = []
    for name, part in parts.items():
        count = sum(1 for other, _ in missing if other == name)
        if count:
            folder = files.root / part.folder
            gone = "" if folder.is_dir() else f", folder {folder} does not exist"
            counts.append(f"{name}: {count} of {len(files)}{gone}")
    lines = [f"  {files.path(index, parts[name])}" for name, index in missing[:_LISTED]]
    if len(missing) > _LISTED:
        lines.append(f"  and {len(missing) - _LISTED} more")
    raise DataError(
        f"{len(missing)} files of split {files.split!r} are missing ({'; '.join(counts)}):\n"
        + "\n".join(lines)
        + "\nRestore them, remove the other files of these samples, or leave the modality out "
        "with --data.modalities"
    )
