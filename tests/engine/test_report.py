"""Results and report: what CSV, table and page say, also when parts are missing."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastseg
from fastseg.report import (
    Picture,
    RunReport,
    SubsetResult,
    format_table,
    mean_result,
    read_results,
    write_report,
    write_results,
)
from fastseg.report.history import Series, loss_terms, series, smooth
from fastseg.report.html import render
from fastseg.report.pictures import LONGEST, accuracy, image_uri, label_uri

NAN = math.nan
CLASSES = ("road", "sky, clear", "a<b> & $c$")
PALETTE = np.array([[128, 64, 128], [70, 130, 180], [220, 20, 60]], np.uint8)
SECTIONS = ("subsets", "training", "classes", "confusion", "pictures", "configuration", "reproduce")
FIGURES = ("curves.png", "subsets.png", "confusion.png", "pictures.png")
RESULTS = [
    SubsetResult("teacher", "R", 0.30, 0.45, (0.6, 0.3, NAN)),
    SubsetResult("teacher", "D", 0.10, 0.30, (0.3, NAN, NAN)),
    SubsetResult("teacher", "RD", 0.60, 0.60, (0.9, 0.6, 0.3)),
    SubsetResult("student", "R", 0.50, 0.75, (0.9, 0.6, NAN)),
    SubsetResult("student", "D", 0.40, 0.60, (0.6, 0.6, NAN)),
    SubsetResult("student", "RD", 0.55, 0.55, (0.8, 0.55, 0.3)),
]
ORDER = ["R", "D", "RD"]


def make_picture(size: int = 24) -> Picture:
    noise = np.random.default_rng(5)
    label = noise.integers(0, 3, (size, size)).astype(np.uint8)
    label[:4] = 255
    images = {m: noise.integers(0, 256, (size, size, 3)).astype(np.uint8) for m in ("img", "depth")}
    guesses = {(m, s): noise.integers(0, 3, (size, size)).astype(np.uint8)
               for m in ("teacher", "student") for s in ("RD", "D")}  # fmt: skip
    return Picture("night/000_front", images, label, guesses)


def make_history() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for stage in ("teacher", "student"):
        for step in range(10, 60, 10):
            rows.append({"kind": "train", "stage": stage, "step": step, "loss": 60 / step,
                         "ohem": 50 / step, "kl": 1.0 / step, "lr": 1e-3,
                         "images_per_s": 50.0, "data_wait": 0.02})  # fmt: skip
            rows.append({"kind": "eval", "stage": stage, "step": step, "subset": "RD",
                         "miou_all": step / 100, "miou_present": step / 90})  # fmt: skip
    return rows


def make_report() -> RunReport:
    return RunReport(
        title="a demo <run>",
        config={"name": "demo", "optim": {"lr": 0.00123}},
        history=make_history(),
        results=RESULTS,
        classes=CLASSES,
        palette=PALETTE,
        confusions={m: np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]]) for m in ("teacher", "student")},
        pictures=[make_picture()],
        facts={"command": "python -m fastseg.train --seed 7", "seed": "7"},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run" / "report.html"
    write_report(path, make_report())
    return path


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
    assert format_table(RESULTS, ORDER).splitlines() == [
        "             R      D     RD   Mean",
        "teacher  30.00  10.00  60.00  33.33",
        "student  50.00  40.00  55.00  48.33",
        "gain    +20.00 +30.00  -5.00 +15.00",
    ]


def test_table_of_the_classes_that_occur() -> None:
    assert format_table(RESULTS, ["D"], "miou_present").splitlines() == [
        "             D   Mean",
        "teacher  30.00  30.00",
        "student  60.00  60.00",
        "gain    +30.00 +30.00",
    ]


def test_table_without_student_and_with_a_missing_subset() -> None:
    assert format_table(RESULTS[:2], ORDER).splitlines() == [
        "            R     D    RD  Mean",
        "teacher 30.00 10.00     -     -",
    ]
    assert format_table([], ["R"]) == " R Mean".rjust(10)


@pytest.mark.parametrize("letters", ["FEL", "RDEL"])
def test_table_fits_a_terminal(letters: str) -> None:
    order = ["".join(c) for n in range(1, len(letters) + 1) for c in combinations(letters, n)]
    results = [SubsetResult(m, s, v, v, (v,)) for m, v in (("teacher", 0.0123), ("student", 0.987))
               for s in order]  # fmt: skip
    lines = format_table(results, order).splitlines()
    assert lines[0].split() == [*order, "Mean"]
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 120


# curves


def test_smooth_keeps_straight_lines_and_skips_gaps() -> None:
    line = np.linspace(3.0, 7.0, 101)
    np.testing.assert_allclose(smooth(line), line)
    gaps = np.full(50, 2.0)
    gaps[[0, 10, 11, 12, 49]] = NAN
    smoothed = smooth(gaps)
    assert np.isnan(smoothed[[0, 49]]).all()
    np.testing.assert_allclose(smoothed[[1, 9, 10, 20]], 2.0)
    noise = np.random.default_rng(2).normal(size=400)
    assert smooth(noise)[50:-50].std() < 0.35 * noise.std()


def test_series_sorts_and_counts_what_is_not_finite() -> None:
    rows: list[dict[str, float | None]] = [
        {"step": 20, "loss": None},
        {"step": 10, "loss": 1.5},
        {"step": 30, "other": 1},
    ]
    line = series(rows, "loss")
    np.testing.assert_array_equal(line.steps, [10, 20])
    np.testing.assert_array_equal(line.values, [1.5, NAN])
    assert line.not_finite == 1
    assert isinstance(series([], "loss"), Series)


def test_loss_terms_leave_out_what_is_no_loss() -> None:
    rows = [{"kind": "train", "stage": "s", "step": 1, "kl": 1.0, "loss": 2.0, "lr": 1e-3,
             "modalities": "RD", "nan": None}]  # fmt: skip
    assert loss_terms(rows) == ["loss", "kl", "nan"]


# pictures


def decode(uri: str) -> Image.Image:
    kind, data = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_label_picture_has_class_colours_and_a_hatch() -> None:
    label = np.array([[0, 1, 2, 1] * 4] * 8 + [[255] * 16] * 8, np.uint8)
    shown = np.asarray(decode(label_uri(label, PALETTE)).convert("RGB"))
    np.testing.assert_array_equal(shown[:8], PALETTE[label[:8]])
    hatch = {tuple(map(int, colour)) for colour in shown[8:].reshape(-1, 3)}
    assert len(hatch) == 2
    assert not hatch & {tuple(map(int, colour)) for colour in PALETTE}


def test_pictures_are_exact_when_small_and_reduced_when_large() -> None:
    small = make_picture().images["img"]
    np.testing.assert_array_equal(np.asarray(decode(image_uri(small))), small)
    assert decode(image_uri(np.zeros((300, 600, 3), np.uint8))).size == (LONGEST, LONGEST // 2)
    large = np.repeat(np.repeat(np.array([[0, 2]], np.uint8), 512, 0), 256, 1)
    reduced = decode(label_uri(large, PALETTE)).convert("RGB")
    colours = {colour for _, colour in reduced.getcolors() or []}
    assert colours == {(128, 64, 128), (220, 20, 60)}  # nearest: no mixed colours


def test_accuracy_counts_labelled_pixels_only() -> None:
    label = np.array([0, 1, 255, 2], np.uint8)
    assert accuracy(np.array([0, 1, 1, 1], np.uint8), label, 3) == pytest.approx(2 / 3)
    assert math.isnan(accuracy(label, np.full(4, 255, np.uint8), 3))


# the page


class Page(HTMLParser):
    """Checks that every element is closed, and collects ids, links and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.values: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def get(self, name: str) -> list[str]:
        return [value for key, value in self.values if key == name]


def test_page_needs_nothing_but_itself(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "://" not in text
    assert "@import" not in text
    assert all(source.startswith("data:image/png;base64,") for source in page.get("src"))
    ids = page.get("id")
    assert len(ids) == len(set(ids))
    targets = page.get("href") + page.get("xlink:href") + re.findall(r"url\(([^)]*)\)", text)
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_page_holds_every_part(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert set(SECTIONS) <= set(page.get("id"))
    assert 'class="missing"' not in text
    shown = " ".join(page.text)
    for part in ("a demo <run>", "a<b> & $c$", "48.33", "+15.00", "\u22125.00", "0.00123",
                 "python -m fastseg.train --seed 7", "night/000_front", "validation mIoU, RD",
                 "ohem", "kl", "learning rate", "road seen as sky, clear (20\u00a0%)"):  # fmt: skip
        assert part in shown, part
    assert page.tags.count("img") == 2 + 1 + 4  # modalities, label, predictions
    # 2 subsets, 1 validation, 2 x (3 losses + 3 of speed), 1 confusion
    assert page.tags.count("svg") == 16


def test_charts_follow_the_theme(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    style, body = text.split("</style>", 1)
    assert "prefers-color-scheme:dark" in style
    colours = set(re.findall(r"#[0-9a-f]{6}\b", body))
    assert colours == set(), "a chart has a colour that does not follow light and dark"
    assert "var(--teacher)" in body
    assert "var(--student)" in body


def test_figures_are_pictures(written: Path) -> None:
    folder = written.parent / "figures"
    assert sorted(file.name for file in folder.iterdir()) == sorted(FIGURES)
    for name in FIGURES:
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 150
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_same_report_same_page() -> None:
    report = dataclasses.replace(make_report(), history=make_history()[:4])
    assert render(report) == render(report)


def test_plotting_settings_stay_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render(dataclasses.replace(make_report(), history=[], pictures=[]))
    assert dict(matplotlib.rcParams) == before


SHORT = [
    {"kind": "train", "stage": "teacher", "step": 1, "loss": 2.0},
    {"kind": "eval", "stage": "teacher", "step": 1, "subset": "RD", "miou_all": 0.1},
]
MISSING = {
    "student": (
        {"results": RESULTS[:3], "confusions": {"teacher": np.eye(3, dtype=np.int64)}},
        ["No student yet", "the teacher reaches <b>33.33 mIoU on average</b>"],
        FIGURES,
    ),
    "teacher": ({"results": RESULTS[3:]}, ["No teacher yet"], FIGURES),
    "results": (
        {"results": [], "confusions": {}},
        ["No network has been evaluated yet", "No results", "No confusion matrix"],
        ("curves.png", "pictures.png"),
    ),
    "pictures": ({"pictures": []}, ["No pictures were taken"], FIGURES[:3]),
    "predictions": (
        {"pictures": [dataclasses.replace(make_picture(), predictions={})]},
        ["No predictions for this sample"],
        FIGURES,
    ),
    "history": ({"history": []}, ["No training history"], FIGURES[1:]),
    "validation": ({"history": SHORT[:1]}, ["No validation during training"], FIGURES),
    "losses": ({"history": SHORT[1:]}, ["No training rows"], FIGURES),
    "facts": (
        {"facts": {}, "config": {}},
        ["command of this run is not known", "No configuration was given"],
        FIGURES,
    ),
    "a subset": ({"results": RESULTS[:5]}, ["student has not been scored on every"], FIGURES),
    "everything": (
        {"results": [], "confusions": {}, "pictures": [], "history": [], "facts": {}, "config": {}},
        ["No network", "No results", "No training", "No confusion", "No pictures", "No config"],
        (),
    ),
}


@pytest.mark.parametrize(("change", "said", "figures"), MISSING.values(), ids=MISSING.keys())
def test_a_missing_part_is_named(
    tmp_path: Path, change: dict[str, object], said: list[str], figures: tuple[str, ...]
) -> None:
    for name in FIGURES:  # left from an earlier call: must not survive as if they were new
        (tmp_path / "figures").mkdir(exist_ok=True)
        (tmp_path / "figures" / name).write_text("old")
    short = {"history": SHORT, **change}
    report = dataclasses.replace(make_report(), **short)  # type: ignore[arg-type]
    write_report(tmp_path / "report.html", report)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert set(SECTIONS) <= set(page.get("id"))
    for sentence in said:
        assert sentence in text, sentence
    found = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert found == sorted(figures)
    assert all((tmp_path / "figures" / name).read_bytes() != b"old" for name in found)


def test_values_that_are_not_finite_are_counted() -> None:
    rows = make_history()
    rows[0]["loss"] = None
    rows[4]["loss"] = math.inf
    for row in rows:
        if "kl" in row:
            row["kl"] = None
    absent = [dataclasses.replace(r, miou_present=NAN, iou=(NAN,) * 3) for r in RESULTS]
    text = render(dataclasses.replace(make_report(), history=rows, results=absent, pictures=[]))
    assert "loss (2 values not finite)" in text
    assert "kl (5 values not finite)" in text
    assert "no finite value" in text
    assert "nan" not in " ".join(Page(text).text).lower()


def test_a_single_loss_term_is_drawn_once() -> None:
    rows = [{"kind": "train", "stage": "teacher", "step": s, "loss": 1 / s, "ohem": 1 / s}
            for s in (1, 2, 3)]  # fmt: skip
    text = render(dataclasses.replace(make_report(), history=rows, pictures=[], confusions={}))
    assert text.count("<figcaption>loss = ohem</figcaption>") == 1
    assert "<figcaption>loss</figcaption>" not in text


def test_palette_must_fit_the_classes() -> None:
    with pytest.raises(ValueError, match="palette of 3 x 3 colours, one per class"):
        dataclasses.replace(make_report(), palette=PALETTE[:2])


def test_import_is_light() -> None:
    code = (
        "import sys, fastseg.report; "
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    root = Path(fastseg.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
