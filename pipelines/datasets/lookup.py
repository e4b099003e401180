"""From the name of a data set, or the file that describes it, to its spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from .catalogue import DATASETS
from .described.building import build_spec
from .described.description import Description
from .described.files import FILE, is_described, read_file, read_kept
from .spec import DatasetSpec, unknown_name


def get_dataset(name: str, kept: Mapping[str, Any] | None = None) -> DatasetSpec:
    """The spec of a data set.

    Args:
        name: of the catalogue, or the path of a description that ends with ``.toml``.
        kept: description that a run keeps; it counts if it is that of this path, which then need
            not be there.

    Raises:
        DataError: there is none of that name, with the nearest name that there is; or the
            description cannot be used.
    """
    if is_described(name):
        own = bool(kept) and (kept or {}).get(FILE) == name
        description = read_kept(kept or {}) if own else read_file(name)
        _refuse_known(description, name)
        return build_spec(description, name)
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]


def _refuse_known(description: Description, file: str) -> None:
    """Names tell checkpoints of two data sets apart, and the synthetic set is known by its own."""
    name = description.name
    if name in DATASETS or name.startswith("deliver"):
        raise DataError(
            f"{file}, top level: name = {name!r}; expected one that no data set of the catalogue "
            "has (without the key it is the name of the file). Rename it",
            "toml",
        )
