"""The charts of the report: what each shows, drawn on matplotlib axes in the theme's colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..results import MEAN, RunReport, subset_order
from ..table import table_rows
from . import history as curves
from .theme import LIGHT, roles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MUTED = LIGHT["muted"]
_MOST_POINTS = 600  # of one curve: a panel is about 300 points wide


@dataclass(frozen=True)
class Panel:
    """One chart: its caption, how it draws itself on empty axes, and its size in points."""

    title: str
    draw: Callable[[Axes], None]
    width: float = 330.0
    height: float = 190.0


def training_panels(report: RunReport) -> dict[str, tuple[list[Panel], list[Panel]]]:
    """Per stage, a chart of every loss term; and of learning rate, gradient norm and speed."""
    groups: dict[str, tuple[list[Panel], list[Panel]]] = {}
    for stage, role in roles(curves.stages(report.history), report.compared).items():
        rows = curves.rows_of(report.history, "train", stage=stage)
        terms = {term: term for term in curves.loss_terms(rows)}
        if len(terms) == 2 and "loss" in terms:  # the sum of one term is no second curve
            only = list(terms)[1]
            first, second = (curves.series(rows, key).values for key in terms)
            if np.array_equal(first, second, equal_nan=True):
                terms = {only: f"loss = {only}"}
        lines = {key: {stage: curves.series(rows, key)} for key in (*terms, *curves.SPEED)}
        colour = {stage: role}
        losses = [_curve_panel(title, lines[key], colour) for key, title in terms.items()]
        others = [
            _curve_panel(title, lines[key], colour, smoothed=key != "lr", from_zero=True)
            for key, title in curves.SPEED.items()
            if len(lines[key][stage].steps)
        ]
        if rows:
            groups[stage] = losses, others
    return groups


def validation_panels(report: RunReport) -> list[Panel]:
    """A chart of the validation mIoU per subset that was scored, one line per stage."""
    rows = curves.rows_of(report.history, "eval")
    colours = roles(curves.stages(report.history), report.compared)
    panels = []
    for subset in dict.fromkeys(row.get("subset", "") for row in rows):
        lines = {}
        for stage in colours:
            found = curves.rows_of(rows, "eval", subset=subset, stage=stage)
            line = curves.series(found, "miou_all")
            if len(line.steps):
                lines[stage] = curves.Series(line.steps, 100 * line.values)
        title = f"validation mIoU, {subset}"
        panels.append(_curve_panel(title, lines, colours, dotted=True, from_zero=True))
    return panels


def subset_panels(report: RunReport) -> list[Panel]:
    """Bars of the mIoU of every subset, and its mean by the number of modalities."""
    order = subset_order(report.results)
    rows = {k: v for k, v in table_rows(report.results, order).items() if k != "gain"}
    if not rows:
        return []
    colours = roles(rows, report.compared)
    names = [*order, MEAN]

    def bars(axes: Axes) -> None:
        thick = 0.8 / len(rows)
        places = np.arange(len(names)) + np.where(np.array(names) == MEAN, 0.35, 0.0)
        for row, (model, values) in enumerate(rows.items()):
            at = places + (row - (len(rows) - 1) / 2) * thick
            axes.barh(at, np.nan_to_num(values), 0.9 * thick, color=LIGHT[colours[model]])
            for y, value in zip(at, values, strict=True):
                if np.isfinite(value):
                    axes.annotate(
                        f"{value:.1f}", (value, y), xytext=(3, 0), textcoords="offset points",
                        va="center", fontsize=7.5, color=_MUTED,
                    )  # fmt: skip
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.set_xlim(0, _top([v for values in rows.values() for v in values]) * 1.12)
        _plain(axes, grid="x")
        axes.spines["bottom"].set_visible(False)
        axes.spines["left"].set_visible(True)

    def by_count(axes: Axes) -> None:
        sizes = sorted({len(name) for name in order})
        lines = {}
        for model, values in rows.items():
            means = [
                np.mean([v for name, v in zip(order, values, strict=False) if len(name) == size])
                for size in sizes
            ]
            lines[model] = curves.Series(np.array(sizes, float), np.array(means))
        _dotted(axes, lines, colours)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlim(min(sizes) - 0.3, max(sizes) + 0.3)
        axes.set_ylim(0, _top([v for values in rows.values() for v in values]) * 1.12)
        axes.set_xlabel("modalities present", color=_MUTED)
        _plain(axes, grid="y")

    height = 30 + len(names) * (8 + 9 * len(rows))
    return [
        Panel("mIoU of every subset", bars, 400, height),
        Panel("mean mIoU by number of modalities", by_count, 400, min(300, height)),
    ]


def confusion_panel(report: RunReport) -> Panel | None:
    """Row-normalised confusion matrix of one network, see `confusion_model`."""
    model = confusion_model(report)
    if model is None:
        return None
    shares = row_shares(report.confusions[model])
    colour = LIGHT[roles(report.confusions, report.compared)[model]]

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        count = len(report.classes)
        # the share is the opacity, so that an empty cell shows the paper, light or dark
        for label, prediction in zip(*np.nonzero(shares >= 0.005), strict=True):
            share = float(shares[label, prediction])
            # the square root lets rare confusions be seen beside the diagonal
            axes.add_patch(
                Rectangle(
                    (prediction - 0.5, label - 0.5), 1, 1,
                    facecolor=colour, alpha=share**0.5, linewidth=0,
                )
            )  # fmt: skip
            if share >= 0.095:
                ink = LIGHT["paper"] if share > 0.5 else LIGHT["ink"]
                axes.text(
                    prediction, label, f"{100 * share:.0f}",
                    ha="center", va="center", fontsize=6.5, color=ink,
                )  # fmt: skip
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(count), report.classes, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(count), report.classes, fontsize=8, parse_math=False)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.tick_params(which="both", length=0, labelcolor=_MUTED)
        axes.grid(which="minor", color=LIGHT["line"], linewidth=0.4)
        axes.set_xlabel("prediction", color=_MUTED)
        axes.set_ylabel("label", color=_MUTED)
        for spine in axes.spines.values():
            spine.set_color(LIGHT["line"])

    side = 120 + 20 * len(report.classes)
    return Panel(f"confusion matrix of the {model}, percent of the label", draw, side, side)


def confusion_model(report: RunReport) -> str | None:
    """The network whose confusion matrix is shown: the one with the gain, else the last one."""
    names = list(report.confusions)
    if report.compared is not None and report.compared[1] in names:
        return report.compared[1]
    return names[-1] if names else None


def row_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rows of a confusion matrix divided by their sums; zero for a class without pixels."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(counts / np.maximum(totals, 1), dtype=np.float64)


def _curve_panel(
    title: str,
    lines: Mapping[str, curves.Series],
    colours: Mapping[str, str],
    *,
    dotted: bool = False,
    smoothed: bool = True,
    from_zero: bool = False,
) -> Panel:
    """Lines over the steps: dots as measured, or faint as measured under a smoothed line."""
    lost = sum(line.not_finite for line in lines.values())
    note = f" ({lost} value{'s' * (lost > 1)} not finite)" if lost else ""

    def draw(axes: Axes) -> None:
        if dotted or any(len(line.steps) < 3 for line in lines.values()):
            _dotted(axes, lines, colours)
        else:
            for name, line in lines.items():
                colour = LIGHT[colours[name]]
                strong = curves.smooth(line.values) if smoothed else line.values
                thin = slice(None, None, 1 + len(line.steps) // _MOST_POINTS)
                steps, measured = line.steps[thin], line.values[thin]
                axes.plot(steps, measured, color=colour, alpha=0.4, linewidth=0.8)
                axes.plot(steps, strong[thin], color=colour, linewidth=1.6)
        if not any(np.isfinite(line.values).any() for line in lines.values()):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no finite value", color=_MUTED, ha="center",
                      transform=axes.transAxes)  # fmt: skip
        # the names at the ends of dotted lines need room
        axes.margins(x=0.08 if dotted else 0.02, y=0.2 if dotted else 0.08)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step", color=_MUTED, fontsize=8.5)
        _plain(axes, grid="y")

    return Panel(title + note, draw)


def _dotted(axes: Axes, lines: Mapping[str, curves.Series], colours: Mapping[str, str]) -> None:
    """Lines with a dot at every value; several bear their names at their last finite values."""
    ends = {}
    for name, line in lines.items():
        colour = LIGHT[colours[name]]
        axes.plot(line.steps, line.values, color=colour, linewidth=1.6, marker="o", markersize=4)
        finite = np.flatnonzero(np.isfinite(line.values))
        if len(finite):
            ends[name] = (float(line.steps[finite[-1]]), float(line.values[finite[-1]]))
    highest = max(ends, key=lambda name: ends[name][1], default="")
    for name, end in ends.items() if len(lines) > 1 else ():
        above = name == highest  # close ends would write over each other
        axes.annotate(
            name, end, xytext=(0, 6 if above else -6), textcoords="offset points", fontsize=9,
            ha="center", va="bottom" if above else "top", color=LIGHT["ink"],
            annotation_clip=False,
        )  # fmt: skip


def _plain(axes: Axes, grid: Literal["x", "y"]) -> None:
    """Leave what carries information: thin grid lines across the values, no frame."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(LIGHT["line"])
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=LIGHT["line"], linewidth=0.6)
    axes.tick_params(colors=_MUTED, length=0, labelsize=8.5)
    axes.locator_params(axis=grid, nbins=5)
    values = axes.xaxis if grid == "x" else axes.yaxis
    values.set_major_formatter("{x:g}")


def _top(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return max([*finite, 1.0])
