"""Samples in a list: a CSV or TSV file with a column per sensor and a line per sample."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fastseg.errors import listed
from fastseg.pipelines import DataError, ModalitySpec
from fastseg.pipelines.tools.reading import read_bytes
from fastseg.pipelines.tools.unknown import did_you_mean
from fastseg.prediction.samples import Sample

NAME = "name"
"""Column that names samples, if a list has it."""
_SEVERAL = ";"
"""What stands between the files of a sensor that has several."""


def of_list(path: Path, modalities: Sequence[ModalitySpec], strict: bool) -> list[Sample]:
    """The samples of a list.

    The header names sensors of the network; a column ``name`` may name the samples. Without it a
    sample is called as its first file, without suffix; where that path is absolute or leads
    upwards, by the file's name alone.

    Args:
        path: of the list; columns are separated by tabs if the header has one, else by commas.
        modalities: sensors of the network.
        strict: refuse files that are not there; they are left to the reader else.

    Raises:
        DataError: the list cannot be read, its header or a line has another form, two lines have
            one name, or files are not there.
    """
    lines = _lines(path)
    header = [cell.strip() for cell in next(lines, (0, []))[1]]
    _check_header(path, header, [m.name for m in modalities])
    samples: dict[str, tuple[int, Sample]] = {}
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number} has {len(cells)} cells, the header {len(header)} "
                f"({', '.join(header)}); write a cell per column, empty for a missing sensor",
                "name",
            )
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        sample = _sample(path, number, row, modalities)
        if sample.name in samples:
            raise DataError(
                f"{path}: lines {samples[sample.name][0]} and {number} have the name "
                f"{sample.name}, so that one prediction would replace the other; give the samples "
                f"names in a column {NAME!r}",
                "name",
            )
        samples[sample.name] = number, sample
    if not samples:
        raise DataError(f"{path} has no line below its header; write one per sample", "missing")
    if strict:
        _check_files(path, samples.values())
    return [sample for _, sample in samples.values()]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of the lines that are not blank."""
    data = read_bytes(path)
    # names as those of the files are read, whatever the locale
    text = os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    separator = "\t" if "\t" in text.partition("\n")[0] else ","
    # str.splitlines would cut names at letters that end no line of a CSV file
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        if "\0" in text:
            raise csv.Error("it is not UTF-8 text")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(
            f"{path}, line {max(1, reader.line_num)}: {error}; expected a CSV or TSV file with a "
            "column per sensor",
            "damaged",
        ) from None


def _check_header(path: Path, header: Sequence[str], sensors: Sequence[str]) -> None:
    wanted = f"columns are the sensors {', '.join(sensors)}, and {NAME} for names of samples"
    strange = [cell for cell in header if cell not in (*sensors, NAME)]
    if strange:
        hint = did_you_mean(strange[0], sensors)
        raise DataError(
            f"{path}: the header has {strange[0]!r}; {hint}{wanted}. Rename that column, or take "
            "it out",
            "name",
        )
    twice = [cell for cell in header if header.count(cell) > 1]
    if twice:
        raise DataError(f"{path}: the header has {twice[0]!r} twice; {wanted}", "name")
    if not set(header) & set(sensors):
        raise DataError(f"{path}: the header has no sensor; {wanted}", "name")


def _sample(
    path: Path, number: int, row: dict[str, str], modalities: Sequence[ModalitySpec]
) -> Sample:
    files = {}
    for modality in modalities:
        cell = row.get(modality.name, "")
        if not cell:
            continue
        several = len(modality.files) > 1
        parts = [part.strip() for part in cell.split(_SEVERAL)] if several else [cell]
        if len(parts) != len(modality.files):
            raise DataError(
                f"{path}, line {number}: {modality.name} needs {len(modality.files)} files with "
                f"{_SEVERAL!r} between them, got {cell!r}",
                "name",
            )
        files[modality.name] = tuple(path.parent / part for part in parts)
    first = next((row[name] for name in row if name in files), "").partition(_SEVERAL)[0].strip()
    name = row.get(NAME) or _named_by(first)
    levels = PurePosixPath(name).parts
    if not levels or levels[0] == "/" or ".." in levels:
        raise DataError(
            f"{path}, line {number}: {name!r} cannot name a sample; expected a relative path "
            "without '..', such as night/0001",
            "name",
        )
    return Sample("/".join(levels), files)


def _named_by(first: str) -> str:
    """The name of a sample by its first file."""
    place = PurePosixPath(first)
    if place.is_absolute() or ".." in place.parts:
        return place.stem
    return str(place.with_suffix("")) if place.name else ""


def _check_files(path: Path, samples: Iterable[tuple[int, Sample]]) -> None:
    gone = [
        f"line {number}: {file}"
        for number, sample in samples
        for files in sample.files.values()
        for file in files
        if not file.is_file()
    ]
    if gone:
        raise DataError(
            f"{path} names {len(gone)} files that are not there: {listed(gone)}. Mend the paths, "
            "which are relative to the list, empty the cells of sensors that are missing, or use "
            "--unreadable missing",
            "missing",
        )
