"""``report.html``: one page that needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastseg.pipelines.tools.names import readable
from fastseg.pipelines.tools.whole_files import write_whole

from ..details import DetailTable
from ..results import RunReport, subset_order
from ..table import table_rows
from .charts import training_panels, validation_panels
from .figures import write_figures
from .gallery import gallery
from .markup import css, grid, key, missing, points, signed
from .protocols import protocols
from .scores import classes, confusion, subsets
from .theme import roles, style_sheet


def write_report(path: Path, report: RunReport) -> None:
    """Write the page, and its charts as PNG files into ``figures/`` beside it.

    The page holds style, charts (SVG) and pictures (PNG) itself: it makes no request, runs no
    script and can be mailed as one file. A part without data says what is missing. Files appear
    whole or not at all; the page comes last.
    """
    write_figures(path.parent / "figures", report)
    write_whole(path, readable(render(report)).encode())


def render(report: RunReport) -> str:
    """The page as text."""
    sections = {
        "subsets": ("Every sensor subset", subsets(report)),
        "protocols": ("Protocols", protocols(report.protocols, report.protocols_note)),
        "training": ("Training", _training(report)),
        "classes": ("Classes", classes(report)),
        "confusion": ("Confusion", confusion(report)),
        "pictures": ("Pictures", gallery(report)),
        "configuration": ("Configuration", _configuration(report)),
        "reproduce": ("How to reproduce", _reproduce(report)),
    }
    links = "".join(f'<a href="#{key}">{name}</a>' for key, (name, _) in sections.items())
    body = "".join(_section(key, name, text) for key, (name, text) in sections.items())
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.facts.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{style_sheet()}</style></head>\n<body>"
        f"<main>\n<header><h1>{escape(report.title)}</h1>\n{_headline(report)}"
        f'<dl class="facts">{facts}</dl>\n<nav aria-label="Sections">{links}</nav></header>\n'
        f"{body}</main></body></html>\n"
    )


def renew_protocols(path: Path, tables: Sequence[DetailTable]) -> bool:
    """Put tables into the protocols' section of a page, and leave all else as it is.

    Returns:
        False if the page has no such section: it is an older one, or not of fastseg.
    """
    new = _section("protocols", "Protocols", protocols(tables))
    try:
        page = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    found = re.findall(r'<section id="protocols">.*?</section>\n', page, re.DOTALL)
    if len(found) != 1:
        return False
    write_whole(path, readable(page.replace(found[0], new)).encode())
    return True


def _section(key: str, name: str, text: str) -> str:
    return f'<section id="{key}"><h2>{name}</h2>\n{text}</section>\n'


def _headline(report: RunReport) -> str:
    """One sentence and three cards: the mean, all modalities, the weakest subset."""
    order = subset_order(report.results)
    rows = table_rows(report.results, order, compared=report.compared)
    gain = rows.pop("gain", None)
    if not rows:
        return missing("No network has been evaluated yet.")
    full = max(order, key=len)
    weakest = {name: _weakest(values[:-1]) for name, values in rows.items()}
    where = ", ".join(f"{name} {order[at]}" for name, at in weakest.items())
    at = order.index(full)
    cards = {
        f"Mean over {len(order)} subsets": {name: values[-1] for name, values in rows.items()},
        f"All modalities ({full})": {name: values[at] for name, values in rows.items()},
        f"Weakest subset ({where})": {name: rows[name][low] for name, low in weakest.items()},
    }
    colours = roles(rows, report.compared)
    blocks = []
    for title, scores in cards.items():
        parts = [(key(css(colours[k])) + escape(k), points(v)) for k, v in scores.items()]
        if gain and report.compared:
            first, second = report.compared
            parts.append(("gain", signed(scores[second] - scores[first])))
        items = "".join(f"<div><dt>{name}</dt><dd>{score}</dd></div>" for name, score in parts)
        blocks.append(f'<div class="card"><h3>{escape(title)}</h3><dl>{items}</dl></div>')
    sentence = _sentence(rows, gain, report.compared, full, at)
    return f'<p class="lead">{sentence}</p>\n<div class="cards">{"".join(blocks)}</div>\n'


def _sentence(
    rows: dict[str, list[float]],
    gain: list[float] | None,
    compared: tuple[str, str] | None,
    full: str,
    at: int,
) -> str:
    reference, name = compared if gain and compared else ("", next(iter(rows)))
    scores, count = rows[name], len(rows[name]) - 1
    if not (math.isfinite(scores[-1]) and math.isfinite(scores[at])):
        return f"The {escape(name)} has not been scored on every sensor subset yet."
    start = f"Over {count} sensor subsets the {escape(name)} reaches <b>{points(scores[-1])} mIoU"
    if gain is None or not (math.isfinite(gain[-1]) and math.isfinite(gain[at])):
        return (
            f"{start} on average</b>, and {points(scores[at])} with every sensor ({escape(full)})."
        )
    side = "above" if gain[-1] >= 0 else "below"
    change = "gains" if gain[at] >= 0 else "loses"
    return (
        f"{start} on average, {points(abs(gain[-1]))} points {side} the {escape(reference)}</b>. "
        f"With every sensor ({escape(full)}) it {change} {points(abs(gain[at]))} and stands at "
        f"{points(scores[at])}."
    )


def _weakest(scores: list[float]) -> int:
    """Position of the lowest finite score; 0 if there is none."""
    return min(range(len(scores)), key=lambda i: scores[i] if math.isfinite(scores[i]) else 1e9)


def _training(report: RunReport) -> str:
    if not report.history:
        return missing("No training history: metrics.jsonl has no rows yet.")
    validation, stages = validation_panels(report), training_panels(report)
    text = "<h3>Validation</h3>\n"
    text += (
        grid(validation, "val", " small")
        if validation
        else missing("No validation during training.")
    )
    if not stages:
        text += missing("No training rows: losses and speed cannot be shown.")
    for number, (stage, panels) in enumerate(stages.items()):
        text += f"<h3>Stage {escape(stage)}</h3>\n"
        text += '<p class="note">Faint: as logged. Strong: moving mean.</p>\n' * (number == 0)
        losses, others = panels
        text += grid(losses, f"loss-{number}", " small")
        if others:
            text += "<details><summary>Learning rate, gradient norm and speed</summary>\n"
            text += grid(others, f"speed-{number}", " small") + "</details>\n"
    return text


def _configuration(report: RunReport) -> str:
    if not report.config:
        return missing("No configuration was given.")
    text = escape(json.dumps(report.config, indent=2, default=str))
    return f"<details><summary>Show all settings</summary>\n<pre>{text}</pre></details>\n"


def _reproduce(report: RunReport) -> str:
    command = report.facts.get("command")
    text = (
        f'<p>The command of this run:</p>\n<pre class="wrap">{escape(command)}</pre>\n'
        if command
        else missing("The command of this run is not known.")
    )
    return text + (
        "<p>Give it another run name, so that it starts anew instead of continuing this one. "
        "Order, augmentation, initial weights and noise derive from the seed: with the versions "
        "named at the top and the settings above, the same CPU gives the same numbers to the last "
        "digit. On a GPU, or with other versions, expect small differences.</p>\n"
        "<p>The charts also lie in <code>figures/</code> beside this page.</p>\n"
    )
