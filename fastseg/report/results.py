"""Results of a run: scores per modality subset, and everything the report draws.

The scores are also a file: ``results.csv`` with one row per network and subset.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipelines.tools.whole_files import write_whole
from .details import DetailTable

MEAN = "Mean"
UNHARMED = "none"
_FIXED = ("model", "subset", "corruption", "miou_all", "miou_present")
_WITHOUT_CORRUPTION = tuple(name for name in _FIXED if name != "corruption")


@dataclass(frozen=True)
class SubsetResult:
    """Scores of one network on one modality subset, as fractions 0..1.

    Attributes:
        model: the network's name.
        subset: letters of the modalities that were present, for instance ``RDE``.
        miou_all: mean over all K classes, an absent class counting 0 (the papers' definition).
        miou_present: mean over the classes that occur; NaN if none does.
        iou: K values; NaN for an absent class.
        corruption: faults of the sensors while they were scored, as
            ``fastseg.pipelines.faults.sensor_faults.describe`` names them.
    """

    model: str
    subset: str
    miou_all: float
    miou_present: float
    iou: tuple[float, ...]
    corruption: str = UNHARMED


@dataclass(frozen=True)
class Picture:
    """One sample: its inputs, its label and what the networks made of it.

    Attributes:
        sample_id: name shown above the pictures.
        images: modality name -> ``[H, W, 3]`` uint8.
        label: ``[H, W]`` uint8; 255 is ignored.
        predictions: (network, subset) -> ``[H, W]`` uint8 classes.
        note: why it is shown.
    """

    sample_id: str
    images: Mapping[str, NDArray[np.uint8]]
    label: NDArray[np.uint8]
    predictions: Mapping[tuple[str, str], NDArray[np.uint8]]
    note: str = ""


@dataclass(frozen=True)
class RunReport:
    """Everything `write_report` needs; what is empty is named as missing on the page.

    Attributes:
        title: headline of the page.
        config: the resolved configuration, nested dicts.
        history: rows of ``metrics.jsonl`` (``kind`` is ``train`` or ``eval``), null where a value
            was not finite.
        results: one per network and subset; the order of the subsets is the order shown.
        classes: K names.
        palette: ``[K, 3]`` uint8 colours of the classes.
        confusions: network -> ``[K labels, K predictions]`` pixel counts, all modalities present.
        pictures: samples to show.
        facts: name -> value, shown at the top; ``command`` also under "how to reproduce".
        compared: the two networks whose difference is the gain: from, to.
        details: further tables.
        protocols: tables of the protocols, see ``fastseg.evaluation.protocol_tables``.
        protocols_note: what is wrong with the file that they are in.
        conditions: mIoU in points by condition and subset, a table for each network.
        features: what the features of each sensor say.
        beside: other runs by name, whose scores and curves stand beside those of this one.
    """

    title: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    results: Sequence[SubsetResult]
    classes: Sequence[str]
    palette: NDArray[np.uint8]
    confusions: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    compared: tuple[str, str] | None = None
    details: Sequence[DetailTable] = ()
    protocols: Sequence[DetailTable] = ()
    protocols_note: str = ""
    conditions: Sequence[DetailTable] = ()
    features: Sequence[DetailTable] = ()
    beside: Mapping[str, RunReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if np.shape(self.palette) != (len(self.classes), 3):
            raise ValueError(
                f"expected a palette of {len(self.classes)} x 3 colours, one per class, "
                f"got shape {np.shape(self.palette)}"
            )


def by_model(results: Sequence[SubsetResult]) -> dict[str, dict[str, SubsetResult]]:
    """``{model: {subset: result}}``, both in order of first appearance.

    Raises:
        ValueError: a pair occurs twice, or a subset bears the reserved name ``Mean``.
    """
    groups: dict[str, dict[str, SubsetResult]] = {}
    for result in results:
        group = groups.setdefault(result.model, {})
        if result.subset in group:
            raise ValueError(f"two results for model {result.model!r}, subset {result.subset!r}")
        if result.subset == MEAN:
            raise ValueError(f"{MEAN!r} is no subset: the mean row is computed, leave it out")
        group[result.subset] = result
    return groups


def subset_order(results: Sequence[SubsetResult]) -> list[str]:
    """Names of all subsets in order of first appearance."""
    return list(dict.fromkeys(result.subset for result in results))


def mean_result(results: Sequence[SubsetResult]) -> SubsetResult:
    """Unweighted mean over the subsets of one network, with ``subset`` set to ``Mean``.

    A class's IoU is averaged over the subsets where it is not NaN, and NaN if there is none.

    Raises:
        ValueError: there is no result, or they belong to several networks or corruptions.
    """
    for kind in ("model", "corruption"):
        found = {getattr(result, kind) for result in results}
        if len(found) != 1:
            raise ValueError(f"expected results of one {kind}, got {sorted(found) or 'none'}")
    iou = np.array([result.iou for result in results], dtype=np.float64)
    counts = np.isfinite(iou).sum(axis=0)
    sums = np.nansum(iou, axis=0)
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return SubsetResult(
        model=results[0].model,
        subset=MEAN,
        miou_all=float(np.mean([result.miou_all for result in results])),
        miou_present=float(np.mean([result.miou_present for result in results])),
        iou=tuple(mean.tolist()),
        corruption=results[0].corruption,
    )


def write_results(path: Path, results: Sequence[SubsetResult], classes: Sequence[str]) -> None:
    """Write ``results.csv``: percent with 4 decimals, empty where a class is absent.

    Columns are ``model, subset, corruption, miou_all, miou_present`` and one per class; a
    `mean_result` row closes each network. The file appears whole or not at all.

    Raises:
        ValueError: a result has not one IoU per class, a (model, subset) pair occurs twice, or the
            results of a network are of several corruptions.
    """
    for result in results:
        if len(result.iou) != len(classes):
            raise ValueError(
                f"expected {len(classes)} class IoUs, got {len(result.iou)} "
                f"for model {result.model!r}, subset {result.subset!r}"
            )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIXED, *classes])
    for group in by_model(results).values():
        rows = list(group.values())
        for row in [*rows, mean_result(rows)]:
            scores = (row.miou_all, row.miou_present, *row.iou)
            writer.writerow([row.model, row.subset, row.corruption, *map(_cell, scores)])
    write_whole(path, text.getvalue())


def read_results(path: Path) -> tuple[list[SubsetResult], tuple[str, ...]]:
    """Results and class names of a `write_results` file; the mean rows are left out.

    Values come back to 1e-6 (the file holds percent with 4 decimals). Files from before there was a
    column ``corruption`` are read as of unharmed sensors.

    Raises:
        ValueError: there is no such file, or a row is not one of `write_results`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"no results at {path}: give the results.csv of a run") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text: give the results.csv of a run") from None
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file ({error}); give a run's results.csv") from None
    layouts = (_FIXED, _WITHOUT_CORRUPTION)
    fixed = next((f for f in layouts if rows and tuple(rows[0][: len(f)]) == f), None)
    if fixed is None:
        raise ValueError(
            f"{path} is not a results file: its first line should begin with {','.join(_FIXED)}"
        )
    classes = tuple(rows[0][len(fixed) :])
    results = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}, line {number}: {len(row)} cells under {len(rows[0])} names")
        model, subset, *scores = row
        corruption = scores.pop(0) if fixed is _FIXED else UNHARMED
        if subset != MEAN:
            all_, present, *iou = (_number(cell, path, number) for cell in scores)
            results.append(SubsetResult(model, subset, all_, present, tuple(iou), corruption))
    try:
        by_model(results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return results, classes


def _cell(fraction: float) -> str:
    return f"{100 * fraction:.4f}" if math.isfinite(fraction) else ""


def _number(cell: str, path: Path, line: int) -> float:
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise ValueError(f"{path}, line {line}: expected a percentage, found {cell!r}")
    return value / 100
