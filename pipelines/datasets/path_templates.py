"""Path templates: from the fields of a sample to its files and back, component by component."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

from ..errors import DataError
from .spec import DatasetSpec, FileSpec


def relative_path(spec: DatasetSpec, split: str, sample_id: str, file: FileSpec) -> str:
    """Path of a sample's file under the root."""
    fields = {**parse_sample_id(spec, sample_id), **_fixed(spec, split, file)}
    return (file.path_template or spec.path_template).format(**fields)


def parse_sample_id(spec: DatasetSpec, sample_id: str) -> dict[str, str]:
    """The fields of a sample id, such as condition, split, scene and frame.

    Raises:
        DataError: the id does not have the form that the spec states.
    """
    match = _regex(spec.sample_id, ()).fullmatch(sample_id)
    if match is None:
        raise DataError(f"{sample_id!r} is no sample id of {spec.name} ({spec.sample_id})", "name")
    return match.groupdict()


def sample_of(spec: DatasetSpec, split: str, file: FileSpec, path: str) -> str | None:
    """Id of the sample that a path under the root belongs to as ``file``; None for others."""
    fixed = _fixed(spec, split, file)
    match = _regex(file.path_template or spec.path_template, tuple(fixed.items())).fullmatch(path)
    return None if match is None else spec.sample_id.format(**match.groupdict(), split=split)


def closer_templates(spec: DatasetSpec, file: FileSpec) -> list[FileSpec]:
    """Files of a described set whose paths say more: a path that fits both is one of theirs.

    With ``{name}.png`` and ``{name}_label.png`` in one folder, ``7_label.png`` is no image of a
    sample ``7_label``.
    """
    if not spec.origin:
        return []
    files = {file for m in (*spec.modalities, *spec.extras) for file in m.files}
    files.update(spec.label.files)
    literal = len(re.sub(r"\{\w+\}", "", file.path_template))
    return [f for f in files if len(re.sub(r"\{\w+\}", "", f.path_template)) > literal]


def wildcard(spec: DatasetSpec, split: str, file: FileSpec) -> str:
    """Glob pattern of all paths of ``file`` under the root."""
    fixed = _fixed(spec, split, file)
    return re.sub(
        r"\{(\w+)\}", lambda m: fixed.get(m[1], "*"), file.path_template or spec.path_template
    )


def sample_in_line(spec: DatasetSpec, line: str, there: Collection[str] = ()) -> str | None:
    """Id of the sample in a line of a list file; None if the line has another form.

    It is the first column, or the whole line if that is the name of a sample that is ``there``.
    """
    regex = _regex(spec.list_line or spec.sample_id, ())
    for text in (line, line.split()[0]):
        match = regex.fullmatch(text)
        # a field is one part of a path; of these two none is a name
        inside = match is not None and not {".", ".."} & set(match.groupdict().values())
        sample_id = spec.sample_id.format(**match.groupdict()) if match and inside else None
        if text == line.split()[0] or sample_id in there:
            return sample_id
    return None


def conditions_of(spec: DatasetSpec, sample_id: str) -> tuple[str, ...]:
    """The sample's value of every condition field of the spec, in its order."""
    fields = parse_sample_id(spec, sample_id)
    return tuple(fields.get(condition.field, "") for condition in spec.conditions)


def case_of(spec: DatasetSpec, sample_id: str) -> str:
    """Sensor failure of a sample's scene, or ``normal``."""
    ending = parse_sample_id(spec, sample_id).get("scene", "").rpartition("_")[2]
    return ending if ending in spec.cases else "normal"


def split_path(spec: DatasetSpec, split: str) -> str:
    """What ``{split}`` stands for in paths of the split."""
    return dict(spec.split_paths).get(split, split)


def list_path(spec: DatasetSpec, root: Path, split: str) -> Path:
    """List file of a split of a data set that has such files."""
    return root / spec.split_list.format(split=split_path(spec, split))


def _fixed(spec: DatasetSpec, split: str, file: FileSpec) -> Mapping[str, str]:
    names = {"folder": file.folder, "tag": file.tag, "suffix": file.suffix}
    return {**names, "split": split_path(spec, split)}


@lru_cache(maxsize=64)
def _regex(template: str, known: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    """A template: known fields literal, the others anything within one component."""
    values = dict(known)
    pieces = re.split(r"\{(\w+)\}", template)  # text and field names take turns
    for i in range(1, len(pieces), 2):
        name = pieces[i]
        pieces[i] = re.escape(values[name]) if name in values else rf"(?P<{name}>[^/]+)"
    pieces[::2] = [re.escape(text) for text in pieces[::2]]
    return re.compile("".join(pieces))
