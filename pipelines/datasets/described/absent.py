"""Why nothing was found of a split that a file describes: its key, and what is there instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ...errors import DataError
from ...tools.unknown import did_you_mean
from ..path_templates import list_path, split_path
from ..spec import DatasetSpec, FileSpec


def nothing_found(
    spec: DatasetSpec, root: Path, split: str, found: Mapping[FileSpec, Collection[str]]
) -> DataError:
    """The error for a split without a sample.

    Args:
        spec: made from a description.
        root: a folder.
        split: name of the split.
        found: samples that have each file, of all splits where these are shares.
    """
    parts = [(f"sensor {m.name!r}", m.files[0]) for m in spec.modalities]
    parts.append(("[label]", spec.label.file))
    empty = [(part, file) for part, file in parts if file in found and not found[file]]
    gone = [(part, file) for part, file in empty if not _folder(root, file).is_dir()]
    if gone:
        part, file = gone[0]
        text = f"there is no folder {_folder(root, file)}"
        remedy = f"{_near(root, file)}Check --data.root, or mend the path in {spec.origin}"
        return _error(spec, part, "files", file.path_template, text, remedy)
    if len(empty) == len(parts) or (empty and not spec.split_list):
        part, file = empty[0]
        value = file.path_template.replace("{split}", split_path(spec, split))
        text = f"no file under {root} is called so"
        return _error(spec, part, "files", value, text, "Mend the path, or --data.root")
    if spec.split_list:
        path = list_path(spec, root, split)
        text = f"{path} names no sample"
        return _error(
            spec, "[splits]", f"lists.{split}", path.name, text, "Write one sample per line into it"
        )
    share = dict(spec.shares).get(split)
    count = len(set().union(*found.values()))
    text = f"none of {count} samples falls to split {split!r}"
    remedy = "Raise the share, take another seed in [splits], or split by lists"
    return _error(spec, "[splits]", f"shares.{split}", str(share), text, remedy)


def _folder(root: Path, file: FileSpec) -> Path:
    return root / file.folder


def _near(root: Path, file: FileSpec) -> str:
    """The folder that may be meant, in place of the first one that is not there."""
    place = root
    for name in Path(file.folder).parts:
        if not (place / name).is_dir():
            try:
                others = sorted(p.name for p in place.iterdir() if p.is_dir())
            except OSError:
                return ""
            listed = f"{place} holds {', '.join(others[:8]) or 'no folder'}. "
            return f"{listed}{did_you_mean(name, others).capitalize()}"
        place /= name
    return ""


def _error(spec: DatasetSpec, part: str, key: str, value: str, text: str, remedy: str) -> DataError:
    return DataError(f"{spec.origin}, {part}: {key} = {value!r}, but {text}. {remedy}", "missing")
