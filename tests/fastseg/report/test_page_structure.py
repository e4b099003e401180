"""The page without a browser: it is one file, readable without its script, and labelled."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from fastseg.report.page.html import render
from fastseg.report.page.theme import DARK, LIGHT
from fastseg.report.results import RunReport
from tests.support.report_page import (
    Page,
    all_subsets,
    make_large_report,
    make_picture,
    make_report,
)


@pytest.fixture(scope="module")
def text() -> str:
    return render(dataclasses.replace(make_large_report(), history=[]))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_every_prediction_is_on_the_page_without_its_script(page: Page) -> None:
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    kept = [(a["data-model"], a["data-subset"]) for a in images if "data-subset" in a]
    expected = [(m, s) for s in all_subsets("RDEL") for m in ("teacher", "student")]
    assert Counter(kept) == Counter(2 * expected)  # two samples
    assert all(len(a["src"]) < 12_000 for a in images)
    assert all(a["alt"] for a in images)
    # what needs the script is hidden until it runs; what the script closes is open
    for tag, attributes in page.elements:
        kinds = attributes.get("class", "").split()
        assert ("hidden" in attributes) == bool({"sensors", "live"} & set(kinds)), (tag, attributes)
        if "kept" in kinds:
            assert "open" in attributes


def test_everything_named_exists_and_every_control_has_a_name(page: Page) -> None:
    ids = page.get("id")
    assert len(ids) == len(set(ids))
    named = [
        name
        for key in ("for", "aria-labelledby", "aria-describedby", "aria-controls")
        for value in page.get(key)
        for name in value.split()
    ]
    assert len(named) > 10
    assert set(named) <= set(ids)
    controls = [attributes["id"] for tag, attributes in page.elements if tag == "input"]
    assert [c for c in controls if c.startswith("sensor-")] == [f"sensor-{s}" for s in "RDEL"]
    assert set(controls) <= set(page.get("for"))
    for tag, attributes in page.elements:
        if tag == "th":
            assert attributes["scope"] in ("row", "col", "colgroup")
        if attributes.get("role") in ("region", "img") and tag != "canvas":  # those are named later
            assert attributes["aria-label"]
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0", "cannot be scrolled by keyboard"


def test_names_cannot_become_markup() -> None:
    evil = '"><script>alert(1)</script>'
    small = make_report()
    images = {evil: small.pictures[0].images["img"]}
    picture = dataclasses.replace(make_picture(), sample_id=evil, note=evil, images=images)
    report = dataclasses.replace(
        small,
        title=evil,
        classes=(evil, "b", "c"),
        facts={evil: evil},
        protocols_note=evil,
        pictures=[picture],
        history=[],
        beside={evil: small},
    )
    page = Page(render(report))
    assert page.tags.count("script") == 1
    assert " ".join(page.text).count(evil) > 6


def test_runs_stand_side_by_side(page: Page) -> None:
    shown = " ".join(page.text)
    for part in ("four, teacher", "demo, student", "optim.lr", "0.1", "0.00123"):
        assert part in shown, part
    assert "name" not in shown.split("Settings that differ")[1].split("Pictures")[0].split()


def test_conditions_have_a_heat_map_whose_depth_is_relative(text: str) -> None:
    section = text.split('<section id="conditions"')[1].split("</section>")[0]
    assert "fog, 3 samples" in section
    assert re.findall(r'style="--v:([\d.]+)">([\d.]+)</td>', section)[:1] == [("25.0", "10.0")]
    assert 'style="--v:100.0">40.0</td>' in section


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_contrast(theme: dict[str, str]) -> None:
    for ink in ("ink", "muted"):
        for paper in ("paper", "wash"):
            assert contrast(theme[ink], theme[paper]) >= 4.5, (ink, paper)
    # the deepest cell of a heat map is 55 % of the colour
    mixed = [
        round(
            0.55 * int(theme["result"][at : at + 2], 16)
            + 0.45 * int(theme["paper"][at : at + 2], 16)
        )
        for at in (1, 3, 5)
    ]
    assert contrast("#" + "".join(f"{part:02x}" for part in mixed), theme["ink"]) >= 4.5


def test_an_old_run_without_pictures_of_every_subset_has_its_switches_left_out() -> None:
    picture = dataclasses.replace(make_picture(), predictions={})
    report: RunReport = dataclasses.replace(make_report(), pictures=[picture], history=[])
    page = Page(render(report))
    assert "sensors" not in page.get("class")
    assert "data-subset" not in [name for _, attributes in page.elements for name in attributes]


@pytest.mark.skipif(shutil.which("node") is None, reason="no node: the script is not parsed")
def test_the_script_is_one(text: str, tmp_path: Path) -> None:
    script = text.split("<script>")[1].split("</script>")[0]
    (tmp_path / "script.js").write_text(script)
    done = subprocess.run(
        ["node", "--check", tmp_path / "script.js"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
