"""The page's section of several runs: their scores, their validations, settings that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from ..details import DetailTable
from ..results import MEAN, RunReport, subset_order
from ..table import table_rows
from .charts import validation_panels
from .markup import css, drawn, fill
from .theme import roles

_RUN = ("name", "out")
"""Settings that tell runs apart and say nothing of what they did."""


def runs(report: RunReport) -> Markup:
    """The run of the page and those beside it, in one table and on the same axes."""
    reports = {report.config.get("name", report.title): report, **report.beside}
    names = list(reports)
    every = [result for found in reports.values() for result in found.results]
    order = subset_order(every)
    order.sort(key=len)  # a run of other sensors has subsets of its own
    rows: dict[str, list[float]] = {}
    for name, found in reports.items():
        for model, values in table_rows(found.results, order).items():
            if model != "gain":
                rows[f"{name}, {model}"] = [_mean(found, model), *values[:-1]]
    # stages become lines of one chart: the last stage of each run bears its name
    history = [
        {**row, "stage": name}
        for name, found in reports.items()
        for row in found.history
        if row["kind"] == "eval" and row["stage"] == _last_stage(found)
    ]
    together = replace(report, history=history, compared=None)
    return fill(
        "runs.html",
        table=DetailTable("mIoU", (MEAN, *order), rows),
        panels=drawn(validation_panels(together), "runs"),
        colours=[(name, css(role)) for name, role in roles(names, None).items()],
        names=names,
        different=_different({name: _flat(found.config) for name, found in reports.items()}),
    )


def _mean(report: RunReport, model: str) -> float:
    """Mean over the subsets of the run itself."""
    return table_rows(report.results, subset_order(report.results))[model][-1]


def _last_stage(report: RunReport) -> str:
    return str(report.history[-1]["stage"])


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by their dotted names, as text."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif prefix or key not in _RUN:
            found[prefix + key] = str(value)
    return found


def _different(configs: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Settings whose values are not the same in all runs; empty text where one has none."""
    every = dict.fromkeys(key for config in configs.values() for key in config)
    values = {key: [config.get(key, "") for config in configs.values()] for key in every}
    return {key: found for key, found in values.items() if len(set(found)) > 1}
