"""Charts as files and as inline SVG that follows the page's light or dark setting.

matplotlib is imported inside functions, and used through its objects only (no pyplot), so that
importing this module costs nothing and leaves the reader's plotting set-up alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from fastseg.pipelines.tools.whole_files import write_whole

from ..results import RunReport
from .charts import Panel, confusion_panel, subset_panels, training_panels, validation_panels
from .pictures import draw_pictures
from .theme import LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 72  # matplotlib's SVG unit is a point


def panel_svg(panel: Panel, name: str) -> str:
    """The chart as inline SVG without its caption; every theme colour is a CSS variable.

    Args:
        panel: what to draw.
        name: unique on the page, so that the chart's internal references are.
    """
    import matplotlib

    figure = _figure(panel.width, panel.height)
    panel.draw(figure.add_subplot())
    text = io.StringIO()
    # text stays text, and the same chart gives the same bytes; savefig has no arguments for these
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True)
    return _inline(text.getvalue(), panel.title)


def write_figures(folder: Path, report: RunReport) -> list[str]:
    """Write ``curves.png, subsets.png, confusion.png, pictures.png``; returns those written.

    A figure without data is not written, and one from an earlier call is removed.
    """
    losses = [
        replace(panel, title=f"{stage}: {panel.title}")
        for stage, (panels, _) in training_panels(report).items()
        for panel in panels
    ]
    confusion = confusion_panel(report)
    data = {
        "curves.png": _sheet([*validation_panels(report), *losses], columns=3),
        "subsets.png": _sheet(subset_panels(report), columns=2),
        "confusion.png": _sheet([confusion] if confusion else [], columns=1),
        "pictures.png": _png(draw_pictures(report)) if report.pictures else None,
    }
    for name, content in data.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_whole(folder / name, content)
    return [name for name, content in data.items() if content is not None]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / _POINTS, height / _POINTS), facecolor=LIGHT["paper"])
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    return figure


def _sheet(panels: Sequence[Panel], columns: int) -> bytes | None:
    """All charts on one sheet, titled, as a PNG file; None if there is none."""
    if not panels:
        return None
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height = max(panel.height for panel in panels) + 20
    figure = _figure(columns * panels[0].width, rows * height)
    for position, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, position)
        panel.draw(axes)
        axes.set_title(panel.title, loc="left", fontsize=10, color=LIGHT["ink"], parse_math=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=2 * _POINTS)
    return data.getvalue()


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def _inline(svg: str, title: str) -> str:
    """Turn a stand-alone SVG into one that lives in the page: its fonts, its colours, its ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg)  # the page says how wide
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: (?:[a-z]+ )*([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"\n\s*", "\n", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
