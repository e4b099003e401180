"""The page's sections of scores: subsets, classes, confusion."""

from __future__ import annotations

import math
from html import escape

from ..results import MEAN, RunReport, by_model, mean_result, subset_order
from ..table import Score, table_rows
from .charts import confusion_model, confusion_panel, row_shares, subset_panels
from .figures import panel_svg
from .markup import DASH, css, details, grid, key, keys, missing, points, rgb, signed
from .theme import roles


def subsets(report: RunReport) -> str:
    """The table of all subsets and its charts."""
    if not report.results:
        return missing("No results: the table is filled once a network has been evaluated.")
    groups = by_model(report.results)
    lack = [
        f"No {name} yet: there is no row for it."
        for name in report.compared or ()
        if name not in groups
    ]
    return (
        '<p class="note">mIoU in points; an absent class counts 0. Letters name the modalities '
        "that were present.</p>\n"
        + "".join(map(missing, lack))
        + _score_table(report, "miou_all")
        + "<details><summary>The same over the classes that occur only</summary>\n"
        + _score_table(report, "miou_present")
        + "</details>\n"
        + keys((name, css(role)) for name, role in roles(groups, report.compared).items())
        + grid(subset_panels(report), "subsets")
        + "".join(details(table, table.title) for table in report.details)
    )


def classes(report: RunReport) -> str:
    """IoU per class: all modalities, and the mean over the subsets."""
    groups = by_model(report.results)
    if not groups:
        return missing("No results: class scores are known once a network has been evaluated.")
    full = max(subset_order(report.results), key=len)
    columns = []
    for title in (full, MEAN):
        for model, group in groups.items():
            row = mean_result(list(group.values())) if title == MEAN else group.get(title)
            iou = row.iou if row else (math.nan,) * len(report.classes)
            columns.append((title, model, iou))
    colours = roles(groups, report.compared)
    spans = "".join(
        f'<th scope="colgroup" colspan="{len(groups)}">{escape(title)}</th>'
        for title in (f"all modalities ({full})", "mean over subsets")
    )
    heads = "".join(f'<th scope="col">{escape(model)}</th>' for _, model, _ in columns)
    lines = []
    for index, name in enumerate(report.classes):
        cells = "".join(_bar(100 * iou[index], colours[model]) for _, model, iou in columns)
        colour = rgb(report.palette[index])
        lines.append(f'<tr><th scope="row">{key(colour)}{escape(name)}</th>{cells}</tr>\n')
    return (
        f'<p class="note">IoU in points; {DASH} where a class is neither in the labels nor in the '
        'predictions.</p>\n<div class="scroll"><table class="classes"><thead>'
        f"<tr><th></th>{spans}</tr><tr><th></th>{heads}</tr></thead>\n"
        f"<tbody>{''.join(lines)}</tbody></table></div>\n"
    )


def confusion(report: RunReport) -> str:
    """The confusion matrix and its largest errors."""
    panel, model = confusion_panel(report), confusion_model(report)
    if panel is None or model is None:
        return missing("No confusion matrix: no network has been evaluated on all modalities.")
    reference, result = report.compared or ("", "")
    text = f"No {escape(result)} yet: this is the {escape(reference)}'s."
    lack = missing(text) if model == reference else ""
    chart = panel_svg(panel, "confusion")
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
    worst = ", ".join(
        f"{escape(label)} seen as {escape(other)} ({100 * share:.0f}\u00a0%)"
        for share, label, other in errors
    )
    return (
        f"{lack}<p>All modalities present. A row is a class of the label, its cells say what the "
        f"{escape(model)} made of its pixels, in percent. Shares from 10 % are printed.</p>\n"
        + (f"<p>Most frequent mistakes: {worst}.</p>\n" if worst else "")
        + f'<div class="scroll"><figure class="wide">{chart}</figure></div>\n'
    )


def _score_table(report: RunReport, score: Score) -> str:
    order = subset_order(report.results)
    rows = table_rows(report.results, order, score, report.compared)
    networks = [values for name, values in rows.items() if name != "gain"]
    best = [
        max(column) if len(networks) > 1 else math.inf for column in zip(*networks, strict=True)
    ]
    head = "".join(f'<th scope="col"{_rule(name)}>{escape(name)}</th>' for name in [*order, MEAN])
    lines = []
    for name, values in rows.items():
        cells = []
        for subset, value, top in zip([*order, MEAN], values, best, strict=True):
            if name == "gain":
                mark = ' class="less"' if value < 0 else ""
                text = f"<span{mark}>{signed(value)}</span>"
            else:
                text = points(value)
                text = f'<span class="best">{text}</span>' if value == top else text
            cells.append(f"<td{_rule(subset)}>{text}</td>")
        kind = ' class="gain"' if name == "gain" else ""
        lines.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>\n')
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{''.join(lines)}</tbody></table></div>\n"
    )


def _rule(column: str) -> str:
    return ' class="rule"' if column == MEAN else ""


def _bar(value: float, role: str) -> str:
    if not math.isfinite(value):
        return f"<td>{DASH}</td>"
    return f'<td style="--v:{value:.1f};--bar:var(--{role})">{value:.1f}</td>'
