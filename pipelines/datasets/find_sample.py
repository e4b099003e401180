"""One sample of a split, by its id or number."""

from __future__ import annotations

from difflib import get_close_matches

from ..errors import DataError
from .split_files import SplitFiles


def find_sample(files: SplitFiles, name: str) -> int:
    """Index of the sample with this id or number.

    Raises:
        DataError: there is none.
    """
    if name in files.sample_ids:
        return files.sample_ids.index(name)
    if name.isdigit() and int(name) < len(files):
        return int(name)
    if name.isdigit():
        raise DataError(
            f"split {files.split!r} has {len(files)} samples, numbered from 0; got {name}"
        )
    nearest = get_close_matches(name, files.sample_ids, n=1, cutoff=0.3)
    example = nearest[0] if nearest else files.sample_ids[0]
    raise DataError(f"no sample {name!r} in split {files.split!r}; did you mean {example!r}?")
