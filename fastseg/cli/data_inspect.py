"""The subcommands of ``python -m fastseg.data`` that look at a data set or pack it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

import fastseg
from fastseg.cli.command import BAD_INPUT
from fastseg.pipelines import get_dataset
from fastseg.pipelines.build import refuse_raw
from fastseg.pipelines.cache.read import packed_folder
from fastseg.pipelines.cache.write import pack_split
from fastseg.pipelines.datasets.find_sample import find_sample
from fastseg.pipelines.datasets.split_files import Missing, list_split
from fastseg.pipelines.inspection.check import check_dataset, summarise
from fastseg.pipelines.inspection.statistics import measure
from fastseg.pipelines.tools.settings import Range, Workers, check_fields
from fastseg.pipelines.tools.whole_files import write_whole
from fastseg.report.contact_sheet import draw_sheet


@dataclass(frozen=True)
class DataSet:
    """A data set on disk."""

    dataset: Annotated[str, tyro.conf.arg(aliases=["--data.dataset"])] = "deliver"
    """Name of its spec: deliver, muses, muses-raw, mcubes, nyu, mfnet, kitti360, or a variant; or a
    .toml file that describes it."""
    root: Annotated[Path, tyro.conf.arg(aliases=["--data.root"])] = Path("data/deliver")
    """Folder that holds it."""
    modalities: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--data.modalities"])] = ()
    """Modalities to look at; none for all that are used unless named."""
    workers: Annotated[Workers, tyro.conf.arg(aliases=["--data.workers"])] = 0
    """Processes; 0 for one per CPU. The result does not depend on it."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Check(DataSet):
    """Decode every file, compare it with the data set's spec and name every fault.

    Looks at files that are missing or damaged, bit depth, sizes, label values and conditions. The
    exit code is 0 without faults and 2 with any.
    """

    splits: tuple[str, ...] = ()
    """Splits to check; none for all that are there."""
    json: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None
    """File for the whole report."""

    def run(self) -> int:
        """Check, print a summary, write the report."""
        spec = get_dataset(self.dataset)
        report = check_dataset(spec, self.root, self.splits, self.modalities, self.workers)
        print(summarise(report))
        if self.json is not None:
            content = {"fastseg": fastseg.__version__, "ok": not report.faults, **asdict(report)}
            write_whole(self.json, json.dumps(content, indent=1) + "\n")
            print(f"report: {self.json}")
        return BAD_INPUT if report.faults else 0


@dataclass(frozen=True)
class Stats(DataSet):
    """Measure mean and deviation of every modality and count the pixels of every class."""

    out: Path = Path("stats.json")
    """JSON file for the numbers."""
    split: str = "train"
    """Split to measure."""

    def run(self) -> int:
        """Measure, print a table, write the file."""
        spec = get_dataset(self.dataset)
        refuse_raw(spec, self.modalities)
        files = list_split(spec, self.root, self.split, self.modalities)
        numbers = measure(files, self.workers)
        for name, values in numbers["modalities"].items():
            mean, std = (" ".join(f"{x:.6g}" for x in values[key]) for key in ("mean", "std"))
            print(f"{name}: mean {mean}, std {std} {values['unit']}".rstrip())
        labelled = sum(numbers["classes"].values())
        for name, pixels in numbers["classes"].items():
            print(f"  {name}: {pixels} pixels, {100 * pixels / max(labelled, 1):.4g} %")
        weights = " ".join(f"{weight:g}" for weight in numbers["class_weights"])
        print(f"to let rare classes count more: --losses.class-weights {weights}")
        content = {"fastseg": fastseg.__version__, **numbers}
        write_whole(self.out, json.dumps(content, indent=1) + "\n")
        print(f"{numbers['samples']} samples of {self.split}: {self.out}")
        return 0


@dataclass(frozen=True)
class Show(DataSet):
    """Draw a sample: all modalities, the label in its colours, a legend."""

    out: Path = Path("sample.png")
    """PNG file of the sheet."""
    split: str = "train"
    """Split of the sample."""
    sample: str = "0"
    """Id of the sample, such as sun/train/MAP_1_point1/100000, or its number in the split."""
    longest: Annotated[int, Range(16, 2**14)] = 512
    """Pixels of a picture's longer side."""

    def run(self) -> int:
        """Draw the sheet and write it."""
        spec = get_dataset(self.dataset)
        refuse_raw(spec, self.modalities)
        files = list_split(spec, self.root, self.split, self.modalities)
        sheet = io.BytesIO()
        draw_sheet(files, find_sample(files, self.sample), self.longest).save(sheet, "PNG")
        write_whole(self.out, sheet.getvalue())
        print(self.out)
        return 0


@dataclass(frozen=True)
class Pack(DataSet):
    """Decode every file once into arrays that training maps into memory instead of decoding.

    Lossless. Continues where an interrupted run stopped, and decodes anew what has changed since.
    """

    splits: tuple[str, ...] = ("train", "val")
    """Splits to pack."""
    out: Path | None = None
    """Folder; none for packed/<dataset> in the root, where training finds it by itself."""
    shard_mib: Annotated[int, Range(1, 2**20)] = 512
    """Size of a file of arrays in MiB."""
    missing: Annotated[Missing, tyro.conf.arg(aliases=["--data.missing"])] = "error"
    """Files that are not there: refuse, pack the samples without those of a modality (zero), or
    leave the samples out (skip), as in training."""

    def run(self) -> int:
        """Pack each split and say how large it is."""
        spec = get_dataset(self.dataset)
        refuse_raw(spec, self.modalities)
        folder = self.out or packed_folder(self.root, spec)
        listed = [
            list_split(spec, self.root, split, self.modalities, missing=self.missing)
            for split in self.splits
        ]
        for files in listed:
            report = pack_split(files, folder / files.split, self.shard_mib, self.workers)
            kept = f" ({report.kept} were up to date)" if report.kept else ""
            size = report.bytes / 2**30
            print(f"{folder / files.split}: {report.samples} samples{kept}, {size:.2f} GiB")
        return 0
