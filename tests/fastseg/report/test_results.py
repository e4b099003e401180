"""Scores: what the CSV file and the table say, also when parts are missing."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from fastseg.report.details import DetailTable
from fastseg.report.results import SubsetResult, mean_result, read_results, write_results
from fastseg.report.table import format_details, format_table
from tests.support.example_scores import CLASSES, COMPARED, NAN, RESULTS

ORDER = ["R", "D", "RD"]


# the scores as numbers and as a file


def test_mean_is_unweighted_and_skips_absent_classes() -> None:
    mean = mean_result(RESULTS[:3])
    assert (mean.model, mean.subset) == ("teacher", "Mean")
    assert mean.miou_all == pytest.approx((0.30 + 0.10 + 0.60) / 3)
    assert mean.miou_present == pytest.approx((0.45 + 0.30 + 0.60) / 3)
    assert mean.iou == pytest.approx((0.6, 0.45, 0.3))
    never = mean_result([SubsetResult("m", "R", 0.1, NAN, (NAN, 0.1))])
    assert math.isnan(never.iou[0])
    assert math.isnan(never.miou_present)


@pytest.mark.parametrize("results", [[], [RESULTS[0], RESULTS[3]]], ids=["none", "two models"])
def test_mean_needs_one_model(results: list[SubsetResult]) -> None:
    with pytest.raises(ValueError, match="results of one model"):
        mean_result(results)


def test_csv_text(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    write_results(path, RESULTS, CLASSES)
    assert path.read_text(encoding="utf-8").splitlines() == [
        'model,subset,corruption,miou_all,miou_present,road,"sky, clear",a<b> & $c$',
        "teacher,R,none,30.0000,45.0000,60.0000,30.0000,",
        "teacher,D,none,10.0000,30.0000,30.0000,,",
        "teacher,RD,none,60.0000,60.0000,90.0000,60.0000,30.0000",
        "teacher,Mean,none,33.3333,45.0000,60.0000,45.0000,30.0000",
        "student,R,none,50.0000,75.0000,90.0000,60.0000,",
        "student,D,none,40.0000,60.0000,60.0000,60.0000,",
        "student,RD,none,55.0000,55.0000,80.0000,55.0000,30.0000",
        "student,Mean,none,48.3333,63.3333,76.6667,58.3333,30.0000",
    ]
    assert [file.name for file in path.parent.iterdir()] == ["results.csv"]


def test_csv_comes_back(tmp_path: Path) -> None:
    a, b, c, d, e = np.random.default_rng(1).random(5).tolist()
    odd = [
        SubsetResult("x, y", "R", a, b, (c, NAN, 0.0), "noise high, blackout 1"),
        SubsetResult("x, y", "D", d, e, (NAN, NAN, 1.0), "noise high, blackout 1"),
    ]
    write_results(tmp_path / "results.csv", odd, CLASSES)
    back, classes = read_results(tmp_path / "results.csv")
    assert classes == CLASSES
    keys = [[(r.model, r.subset, r.corruption) for r in results] for results in (back, odd)]
    assert keys[0] == keys[1]
    for before, after in zip(odd, back, strict=True):
        scores = (before.miou_all, before.miou_present, *before.iou)
        assert (after.miou_all, after.miou_present, *after.iou) == pytest.approx(
            scores, abs=1e-6, nan_ok=True
        )


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([SubsetResult("m", "R", 0, 0, (0.1,))], "expected 3 class IoUs, got 1"),
        ([RESULTS[0], RESULTS[0]], "two results for model 'teacher', subset 'R'"),
        ([SubsetResult("m", "Mean", 0, 0, (0, 0, 0))], "the mean row is computed"),
        (
            [
                SubsetResult("m", s, 0, 0, (0, 0, 0), c)
                for s, c in (("R", "none"), ("D", "shift 1"))
            ],
            "results of one corruption, got ['none', 'shift 1']",
        ),
    ],
    ids=["classes", "twice", "reserved", "corruptions"],
)
def test_wrong_results_are_not_written(
    tmp_path: Path, results: list[SubsetResult], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        write_results(tmp_path / "results.csv", results, CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_file_from_before_there_was_a_column_of_corruptions(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(
        "model,subset,miou_all,miou_present,road,sky\nteacher,R,30.0,45.0,60.0,\n"
        "teacher,Mean,30.0,45.0,60.0,\n"
    )
    (result,), classes = read_results(path)
    assert classes == ("road", "sky")
    assert (result.subset, result.corruption) == ("R", "none")
    assert (result.miou_all, result.miou_present, result.iou[0]) == pytest.approx((0.3, 0.45, 0.6))
    assert math.isnan(result.iou[1])


HEAD = "model,subset,corruption,miou_all,miou_present,road\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results at"),
        (b"\x89PNG\xff\xfe", "is not text"),
        (b"", "first line should begin with model,subset"),
        (b"step,loss\n1,2\n", "first line should begin with model,subset"),
        (HEAD.encode() + b"m,R,none,1.0,1.0\n", "line 2: 5 cells under 6 names"),
        (
            HEAD.encode() + b"m,R,none,1,1,1\nm,D,none,x,1,1\n",
            "line 3: expected a percentage, found 'x'",
        ),
        (HEAD.encode() + b"m,R,none,101,1,1\n", "expected a percentage, found '101'"),
        (HEAD.encode() + b"m,R,none,nan,1,1\n", "expected a percentage, found 'nan'"),
        (HEAD.encode() + b'm,"R,none,1,1,1\n', "is not a CSV file"),
        (HEAD.encode() + b"m,R,none,1,1,1\nm,R,none,1,1,1\n", "results.csv: two results"),
    ],
    ids=["absent", "binary", "empty", "other", "ragged", "word", "range", "nan", "quote", "twice"],
)
def test_a_file_that_is_no_results_file(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_results(path)
    assert str(path) in str(error.value)


# the table


def test_table_text() -> None:
    assert format_table(RESULTS, ORDER, compared=COMPARED).splitlines() == [
        "             R      D     RD   Mean",
        "teacher  30.00  10.00  60.00  33.33",
        "student  50.00  40.00  55.00  48.33",
        "gain    +20.00 +30.00  -5.00 +15.00",
    ]


def test_table_of_the_classes_that_occur() -> None:
    assert format_table(RESULTS, ["D"], "miou_present", COMPARED).splitlines() == [
        "             D   Mean",
        "teacher  30.00  30.00",
        "student  60.00  60.00",
        "gain    +30.00 +30.00",
    ]


def test_table_without_student_and_with_a_missing_subset() -> None:
    assert format_table(RESULTS[:2], ORDER, compared=COMPARED).splitlines() == [
        "            R     D    RD  Mean",
        "teacher 30.00 10.00     -     -",
    ]
    assert format_table([], ["R"]) == " R Mean".rjust(10)


@pytest.mark.parametrize("letters", ["FEL", "RDEL"])
def test_table_fits_a_terminal(letters: str) -> None:
    order = ["".join(c) for n in range(1, len(letters) + 1) for c in combinations(letters, n)]
    results = [SubsetResult(m, s, v, v, (v,)) for m, v in (("teacher", 0.0123), ("student", 0.987))
               for s in order]  # fmt: skip
    lines = format_table(results, order, compared=COMPARED).splitlines()
    assert lines[0].split() == [*order, "Mean"]
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 120


def test_a_table_beside_the_scores() -> None:
    table = DetailTable("Cost", ("adds", "parameters"), {"a": (1.0, 2.345), "longer": (NAN, 12.0)})
    assert format_details(table).splitlines() == [
        "Cost",
        "             adds parameters",
        "a            1.00       2.35",
        "longer          -      12.00",
    ]
