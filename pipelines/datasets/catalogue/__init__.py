"""The data sets fastseg can read, as data: one file each.

A name with a suffix is another reading of the same files: what a published loader really feeds its
network (``muses-anyseg``), or another of several published formats (``muses-npz``). Each is a data
set of its own to checkpoints, so that scores of two readings are never mixed by accident.

UrbanLF, which the DELIVER repository also reads, is not here: its up to 81 views are chosen by a
number, and its labels are colours that are matched to the nearest entry of a palette.
"""

from __future__ import annotations

from ..spec import DatasetSpec
from . import deliver, kitti360, mcubes, mfnet, muses, nyu

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for module in (deliver, muses, mcubes, nyu, mfnet, kitti360)
    for spec in module.SPECS
}
"""Every spec by name."""
