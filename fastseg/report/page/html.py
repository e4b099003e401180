"""``report.html``: one page that needs nothing but itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from fastseg.pipelines.tools.names import readable
from fastseg.pipelines.tools.whole_files import write_whole

from ..details import DetailTable
from ..results import RunReport
from .charts import training_panels, validation_panels
from .figures import write_figures
from .gallery import gallery
from .headline import headline
from .history import rows_of
from .markup import drawn, fill
from .runs import runs
from .scores import classes, confusion, subsets


def write_report(path: Path, report: RunReport) -> None:
    """Write the page, and its charts as PNG files into ``figures/`` beside it.

    The page holds style, script, charts (SVG) and pictures (PNG) itself: it makes no request and
    can be mailed as one file. Without its script it shows the same, but for the switches of the
    sensors. A part without data says what is missing. Files appear whole or not at all; the page
    comes last.
    """
    write_figures(path.parent / "figures", report)
    write_whole(path, readable(render(report)).encode())


def render(report: RunReport) -> str:
    """The page as text."""
    sections = {"subsets": ("Every sensor subset", subsets(report))}
    if report.beside:
        sections["runs"] = ("Runs side by side", runs(report))
    sections |= {
        "pictures": ("Pictures", gallery(report)),
        "classes": ("Classes", classes(report)),
    }
    if report.conditions:
        tables = fill("conditions.html", tables=report.conditions)
        sections["conditions"] = ("Conditions", tables)
    if report.features:
        sections["features"] = ("Features", fill("protocols.html", tables=report.features, note=""))
    sections |= {
        "confusion": ("Confusion", confusion(report)),
        "training": ("Training", _training(report)),
        "protocols": ("Protocols", _protocols(report.protocols, report.protocols_note)),
        "configuration": ("Configuration", fill("configuration.html", text=_settings(report))),
        "reproduce": (
            "How to reproduce",
            fill("reproduce.html", command=report.facts.get("command")),
        ),
    }
    return fill("page.html", report=report, headline=headline(report), sections=sections)


def renew_protocols(path: Path, tables: Sequence[DetailTable]) -> bool:
    """Put tables into the protocols' section of a page, and leave all else as it is.

    Returns:
        False if the page has no such section: it is an older one, or not of fastseg.
    """
    new = fill("section.html", id="protocols", name="Protocols", text=_protocols(tables))
    try:
        page = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    found = re.findall(r'<section id="protocols"[^>]*>.*?</section>\n', page, re.DOTALL)
    if len(found) != 1:
        return False
    write_whole(path, readable(page.replace(found[0], new)).encode())
    return True


def _protocols(tables: Sequence[DetailTable], note: str = "") -> Markup:
    """Every table under its heading: protocol, then what a reader needs to know of the numbers."""
    return fill("protocols.html", tables=tables, note=note)


def _training(report: RunReport) -> Markup:
    return fill(
        "training.html",
        history=report.history,
        validation=drawn(validation_panels(report), "val"),
        stages=[
            (stage, drawn(losses, f"loss-{at}"), drawn(others, f"speed-{at}"), _seen(report, stage))
            for at, (stage, (losses, others)) in enumerate(training_panels(report).items())
        ],
    )


def _seen(report: RunReport, stage: str) -> dict[str, float]:
    """Share of a stage's steps in which its network saw a sensor, as far as they are logged."""
    steps: Counter[str] = Counter()
    counted, before = 0, 0
    for row in rows_of(report.history, "train", stage=stage):
        if isinstance(row.get("modality_steps"), dict):
            steps.update(row["modality_steps"])
            counted += row["step"] - before
        before = row["step"]
    return {name: count / counted for name, count in steps.items()} if counted > 0 else {}


def _settings(report: RunReport) -> str:
    return json.dumps(report.config, indent=2, default=str) if report.config else ""
