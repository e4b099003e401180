"""The data sets fastseg can read, as data: one file each.
"""

from __future__ import annotations

from ..spec import DatasetSpec, unknown_name
from . import deliver

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for module in (deliver,)
    for spec in module.SPECS
}
"""Every spec by name."""


def get_dataset(name: str) -> DatasetSpec:
    """The spec called ``name``.

    Raises:
        DataError: there is none; the message has the nearest name.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]
