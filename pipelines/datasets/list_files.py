"""List files of splits, where a data set comes with them: one sample per line."""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection
from pathlib import Path

from ..errors import DataError
from ..tools.reading import check_regular
from .path_templates import list_path, sample_in_line
from .spec import DatasetSpec


def read_list(spec: DatasetSpec, root: Path, split: str, there: Collection[str] = ()) -> list[str]:
    """Sample ids of a split's list file, in its order.

    The first column of a line names the sample; the whole line does if one of ``there`` has that
    name, which then has spaces in it. A byte order mark at the start of the file is no part of it.

    Args:
        spec: of the data set.
        root: folder that holds it.
        split: one of ``spec.splits``.
        there: ids of samples that have files.

    Raises:
        DataError: the file is missing, has a line of another form, or names a sample twice.
    """
    path = list_path(spec, root, split)
    check_regular(path)
    try:
        data = path.read_bytes()
        reason = "it is not UTF-8 text" if b"\0" in data else ""
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise DataError(
            f"cannot read {path}, the list of split {split!r}: {reason}; it comes with the data "
            "set, one sample per line. Check --data.root, or restore it",
            "missing",
        )
    # names as those of the files are read, whatever the locale
    lines = os.fsdecode(data.removeprefix(codecs.BOM_UTF8)).split("\n")
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        sample_id = sample_in_line(spec, line.strip(), there)
        if sample_id is None:
            expected = spec.list_line or spec.sample_id
            own = f", or say by line in [splits] of {spec.origin} what lines are" * bool(
                spec.origin
            )
            raise DataError(
                f"{path}, line {number}: {line.strip()!r} is not of the form {expected}; "
                f"restore the list, or take out the line{own}",
                "name",
            )
        if sample_id in ids:
            raise DataError(
                f"{path} names {sample_id} in lines {ids[sample_id]} and {number}; it would count "
                "twice. Take one of them out",
                "name",
            )
        ids[sample_id] = number
    return list(ids)
