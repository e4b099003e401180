"""Small pieces of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from ..details import DetailTable
from .charts import Panel
from .figures import panel_svg

DASH = "\u2013"
_MINUS = "\u2212"


def missing(text: str) -> str:
    """A sentence in the place of a part that has no data."""
    return f'<p class="missing">{escape(text)}</p>\n'


def points(value: float, digits: int = 2) -> str:
    """A score, or a dash if there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def signed(value: float) -> str:
    """A difference of scores with its sign, or a dash if there is none."""
    return f"{value:+.2f}".replace("-", _MINUS) if math.isfinite(value) else DASH


def css(role: str) -> str:
    """The CSS colour of a role of the theme."""
    return f"var(--{role})"


def rgb(colour: Iterable[int]) -> str:
    """The CSS colour of three values 0..255."""
    return f"rgb({','.join(str(int(value)) for value in colour)})"


def key(colour: str) -> str:
    """A small square of a CSS colour."""
    return f'<span class="key" style="background:{colour}"></span>'


def keys(colours: Iterable[tuple[str, str]]) -> str:
    """A legend of names and their CSS colours."""
    items = "".join(f"<li>{key(colour)}{escape(name)}</li>" for name, colour in colours)
    return f'<ul class="keys">{items}</ul>\n'


def grid(panels: Sequence[Panel], name: str, kind: str = "") -> str:
    """Charts side by side as far as the page is wide; ``name`` is unique on the page."""
    figures = "".join(
        f"<figure><figcaption>{escape(panel.title)}</figcaption>"
        f"{panel_svg(panel, f'{name}-{number}')}</figure>\n"
        for number, panel in enumerate(panels)
    )
    return f'<div class="panels{kind}">{figures}</div>\n'


def details(table: DetailTable, title: str, notes: str = "") -> str:
    """Numbers by row and column.

    Args:
        table: the numbers.
        title: its heading, as text.
        notes: what stands between heading and numbers, as HTML.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>'
        f"{''.join(f'<td>{points(value)}</td>' for value in values)}</tr>\n"
        for name, values in table.rows.items()
    ]
    return (
        f"<h3>{escape(title)}</h3>\n{notes}"
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{''.join(lines)}</tbody></table></div>\n"
    )
