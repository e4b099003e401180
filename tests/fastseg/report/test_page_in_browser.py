"""The page in headless Chromium: switches change pictures, nothing is fetched, no side scrolls."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastseg.report.page.html import render
from tests.support.report_page import PALETTE, make_large_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
SAMPLE = make_large_report().pictures[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as found:
        try:
            opened = found.chromium.launch(executable_path=CHROMIUM, args=root)
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(make_large_report()), encoding="utf-8")
    return path


@pytest.fixture
def visit(browser: Any, path: Path) -> Iterator[Any]:
    """Opens the page; whatever it asks for and says on its console fails the test."""
    asked: list[str] = []
    said: list[str] = []
    contexts = []

    def open_page(**options: Any) -> Any:
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()] * len(contexts)
    assert said == []


def shown(page: Any, model: str, subset: str) -> np.ndarray[Any, Any]:
    """The large picture of a network in the second sample, once it is that of the subset."""
    canvas = page.locator(".sample").nth(1).locator(f'[data-model="{model}"] canvas').first
    playwright.expect(canvas).to_have_attribute("data-subset", subset)
    uri = canvas.evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_switches_choose_the_prediction_of_their_sensors(visit: Any) -> None:
    page = visit()
    for model in ("teacher", "student"):
        picture = shown(page, model, "RDEL")
        np.testing.assert_array_equal(
            picture[..., :3], PALETTE[SAMPLE.predictions[model, "RDEL"]], err_msg=model
        )
    said = page.locator("#sensors-said")
    playwright.expect(said).to_contain_text("RDEL, all samples: teacher 80.00 mIoU, student 90.00")
    page.get_by_label("lidar (L)").uncheck()
    playwright.expect(said).to_contain_text("RDE, all samples: teacher 60.00 mIoU, student 70.00")
    picture = shown(page, "student", "RDE")
    np.testing.assert_array_equal(picture[..., :3], PALETTE[SAMPLE.predictions["student", "RDE"]])
    off = page.locator(".off")
    assert off.count() == 2  # the LiDAR of both samples
    assert set(off.locator("figcaption").all_inner_texts()) == {"lidar"}


def test_the_last_sensor_stays_on(visit: Any) -> None:
    page = visit()
    for letter in "RDE":
        page.locator(f"#sensor-{letter}").uncheck()
    page.locator("#sensor-L").click()
    assert page.locator("#sensor-L").is_checked()
    said = page.locator("#sensors-said")
    playwright.expect(said).to_contain_text("One sensor has to stay on: L, all samples")
    shown(page, "teacher", "L")


def test_mistakes_hide_what_is_right_and_what_is_ignored(visit: Any) -> None:
    page = visit()
    page.get_by_label("mistakes only").check()
    page.get_by_label("event (E)").uncheck()
    picture = shown(page, "teacher", "RDL")
    classes = SAMPLE.predictions["teacher", "RDL"]
    wrong = (classes != SAMPLE.label) & (SAMPLE.label < len(PALETTE))
    np.testing.assert_array_equal(picture[..., 3] > 0, wrong)
    np.testing.assert_array_equal(picture[..., :3][wrong], PALETTE[classes][wrong])


def test_the_keyboard_reaches_the_switches(visit: Any) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.locator(":focus").get_attribute("href") == "#content"
    assert page.locator(":focus").bounding_box()["x"] >= 0, "a link in focus is seen"
    page.locator("#sensor-R").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    shown(page, "student", "REL")


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_nothing_scrolls_sideways(visit: Any, width: int, scheme: str, script: bool) -> None:
    page = visit(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=script
    )
    assert page.locator("#sensors").is_visible() == script
    assert page.locator(".kept img").first.is_visible() == (not script)
    widest = page.evaluate("document.documentElement.scrollWidth")
    assert widest == width
    paper = {"light": "rgb(254, 254, 254)", "dark": "rgb(18, 23, 29)"}[scheme]
    playwright.expect(page.locator("body")).to_have_css("background-color", paper)
