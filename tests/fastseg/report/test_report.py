"""The report: what the page says, also when parts are missing."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastseg
from fastseg.report.page.history import Series, loss_terms, series, smooth
from fastseg.report.page.html import render, write_report
from fastseg.report.page.pictures import LONGEST, accuracy, image_uri, label_uri
from tests.support.example_scores import NAN, RESULTS
from tests.support.report_page import PALETTE, Page, make_history, make_picture, make_report

SECTIONS = ("subsets", "training", "classes", "confusion", "pictures", "configuration", "reproduce")
FIGURES = ("curves.png", "subsets.png", "confusion.png", "pictures.png")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run" / "report.html"
    write_report(path, make_report())
    return path


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


def test_page_needs_nothing_but_itself(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert "://" not in text
    assert "@import" not in text
    assert all(source.startswith("data:image/png;base64,") for source in page.get("src"))
    ids = page.get("id")
    assert len(ids) == len(set(ids))
    targets = page.get("href") + page.get("xlink:href")
    targets += re.findall(r"url\(([^)]*)\)", text)
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
                 "ohem", "kl", "depth 50\u00a0%", "learning rate",
                 "road seen as sky, clear (20\u00a0%)"):  # fmt: skip
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
    assert "var(--reference)" in body
    assert "var(--result)" in body


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
        "import sys, fastseg.report.results, fastseg.report.page.html; "
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    root = Path(fastseg.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
