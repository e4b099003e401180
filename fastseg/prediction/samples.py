"""The samples to predict, without labels: names, and the files of the sensors that each one has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastseg.errors import ConfigError, listed
from fastseg.pipelines import DataError, DatasetSpec, ModalitySpec
from fastseg.pipelines.datasets.split_files import scan_split
from fastseg.pipelines.tools.names import readable
from fastseg.pipelines.tools.unknown import unknown


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        name: path of its predictions below their folder, without suffix.
        files: files of each sensor that is there, by its name, in the order of the run.
        unused: files of sensors that are there, too, but are to be left out.
    """

    name: str
    files: Mapping[str, tuple[Path, ...]]
    unused: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)


def of_split(
    spec: DatasetSpec, root: Path, split: str, modalities: Sequence[ModalitySpec]
) -> list[Sample]:
    """The samples of a split that have any file; labels may be there or not.

    Raises:
        DataError: the split is unknown, or nothing is found.
    """
    files, gaps = scan_split(spec, root, split, [m.name for m in modalities])
    gone = {(gap.index, gap.part) for gap in gaps}
    return [
        Sample(
            name,
            {m.name: files.paths(i, m.files) for m in modalities if (i, m.name) not in gone},
        )
        for i, name in enumerate(files.sample_ids)
    ]


def without(
    samples: Sequence[Sample], names: Sequence[str], sensors: Sequence[str]
) -> list[Sample]:
    """The samples without some of their sensors.

    Args:
        samples: any.
        names: sensors to leave out.
        sensors: those of the network.

    Raises:
        ConfigError: a name is no sensor.
        DataError: a sample has no sensor left.
    """
    for name in names:
        if name not in sensors:
            raise ConfigError(f"--without: {unknown('sensor', name, sensors)}")
    left = []
    for sample in samples:
        files = {name: f for name, f in sample.files.items() if name not in names}
        unused = {name: f for name, f in sample.files.items() if name in names}
        left.append(Sample(sample.name, files, unused))
    empty = [readable(sample.name) for sample in left if not sample.files]
    if empty:
        rest = " ".join(name for name in sensors if name not in names)
        wanted = f"a file of one of {rest}" if rest else "a sensor that --without does not name"
        raise DataError(
            f"{len(empty)} of {len(left)} samples have no sensor left: {listed(empty)}; each needs "
            f"{wanted}. Add it, or take these samples out",
            "missing",
        )
    return left
