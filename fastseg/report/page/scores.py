"""The page's sections of scores: subsets, classes, confusion."""

from __future__ import annotations

import math

from markupsafe import Markup

from ..details import DetailTable
from ..results import MEAN, RunReport, SubsetResult, by_model, mean_result, subset_order
from ..table import Score, table_rows
from .charts import confusion_model, confusion_panel, row_shares, subset_panels
from .figures import panel_svg
from .markup import css, drawn, fill, missing, rgb
from .theme import roles


def subsets(report: RunReport) -> Markup:
    """The table of all subsets and its charts."""
    if not report.results:
        return missing("No results: the table is filled once a network has been evaluated.")
    groups = by_model(report.results)
    lack = [
        missing(f"No {name} yet: there is no row for it.")
        for name in report.compared or ()
        if name not in groups
    ]
    colours = roles(groups, report.compared)
    return fill(
        "subsets.html",
        lack=Markup().join(lack),
        columns=[*subset_order(report.results), MEAN],
        all=_rows_and_best(report, "miou_all"),
        present=_rows_and_best(report, "miou_present"),
        colours=[(name, css(role)) for name, role in colours.items()],
        panels=drawn(subset_panels(report), "subsets"),
        details=report.details,
    )


def classes(report: RunReport) -> Markup:
    """IoU per class: all modalities, the mean over the subsets, and a heat map of every subset."""
    groups = by_model(report.results)
    if not groups:
        return missing("No results: class scores are known once a network has been evaluated.")
    full = max(subset_order(report.results), key=len)
    colours = roles(groups, report.compared)
    none = (math.nan,) * len(report.classes)
    columns: list[tuple[str, tuple[float, ...]]] = []
    for whole in (True, False):
        for model, group in groups.items():
            row = group.get(full) if whole else mean_result(list(group.values()))
            columns.append((colours[model], row.iou if row else none))
    return fill(
        "classes.html",
        titles=(f"all modalities ({full})", "mean over subsets"),
        models=list(groups),
        rows=[
            (name, rgb(report.palette[i]), [(100 * iou[i], role) for role, iou in columns])
            for i, name in enumerate(report.classes)
        ],
        maps=[
            (f"IoU of every class with every subset, {model}", _class_map(report, group))
            for model, group in groups.items()
        ],
    )


def confusion(report: RunReport) -> Markup:
    """The confusion matrix and its largest errors."""
    panel, model = confusion_panel(report), confusion_model(report)
    if panel is None or model is None:
        return missing("No confusion matrix: no network has been evaluated on all modalities.")
    reference, result = report.compared or ("", "")
    shares = row_shares(report.confusions[model])
    errors = sorted(
        (
            (float(shares[i, j]), report.classes[i], report.classes[j])
            for i in range(len(shares))
            for j in range(len(shares))
            if i != j and shares[i, j] >= 0.005
        ),
        reverse=True,
    )[:5]
    return fill(
        "confusion.html",
        lack=missing(f"No {result} yet: this is the {reference}'s.") if model == reference else "",
        model=model,
        errors=errors,
        chart=Markup(panel_svg(panel, "confusion")),
    )


def _rows_and_best(
    report: RunReport, score: Score
) -> tuple[dict[str, list[float]], list[float | None]]:
    """Rows of the table of subsets, and in each column the best score where networks compete."""
    order = subset_order(report.results)
    rows = table_rows(report.results, order, score, report.compared)
    networks = [values for name, values in rows.items() if name != "gain"]
    best = [max(column) if len(networks) > 1 else None for column in zip(*networks, strict=True)]
    return rows, best


def _class_map(report: RunReport, group: dict[str, SubsetResult]) -> DetailTable:
    """IoU in points, a row for each class and a column for each subset."""
    rows = {
        name: [100 * result.iou[i] for result in group.values()]
        for i, name in enumerate(report.classes)
    }
    return DetailTable("IoU", tuple(group), rows)
