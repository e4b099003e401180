"""The page's templates, and how they write numbers and colours.

Templates escape everything that is not `Markup`: names of classes, samples and files come from
data sets and may hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..details import DetailTable
from .charts import Panel
from .figures import panel_svg
from .theme import DARK, LIGHT

DASH = "\u2013"
_MINUS = "\u2212"


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    found.filters.update(points=points, signed=signed, percent=percent, css=css, rgb=rgb)
    found.filters["largest"] = largest
    found.globals.update(light=LIGHT, dark=DARK, DASH=DASH)
    return found


def fill(template: str, **values: Any) -> Markup:
    """A template of the folder ``templates`` with its values."""
    # templates escape what they are given, so that the whole is safe
    return Markup(_environment().get_template(template).render(values))


def missing(text: str) -> Markup:
    """A sentence in the place of a part that has no data."""
    return Markup('<p class="missing">{}</p>\n').format(text)


def points(value: float, digits: int = 2) -> str:
    """A score, or a dash if there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def signed(value: float) -> str:
    """A difference of scores with its sign, or a dash if there is none."""
    return f"{value:+.2f}".replace("-", _MINUS) if math.isfinite(value) else DASH


def percent(share: float) -> str:
    """A share without decimals, or a dash if there is none."""
    return f"{100 * share:.0f}\u00a0%" if math.isfinite(share) else DASH


def largest(table: DetailTable) -> float:
    """The largest finite number of a table; 1 if none is above 0."""
    every = (value for row in table.rows.values() for value in row)
    return max((value for value in every if math.isfinite(value)), default=0.0) or 1.0


def css(role: str) -> str:
    """The CSS colour of a role of the theme."""
    return f"var(--{role})"


def rgb(colour: Iterable[int]) -> str:
    """The CSS colour of three values 0..255."""
    return f"rgb({','.join(str(int(value)) for value in colour)})"


def drawn(panels: Sequence[Panel], name: str) -> list[tuple[str, Markup]]:
    """Title and inline SVG of every chart; ``name`` is unique on the page."""
    return [
        (panel.title, Markup(panel_svg(panel, f"{name}-{number}")))
        for number, panel in enumerate(panels)
    ]
