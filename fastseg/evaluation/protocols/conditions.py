"""Complete inputs by the conditions and failure cases that a data set names in its paths.

DELIVER has weathers and scenes in which a sensor fails, MUSES weathers by day and night. Parts of
the path are compared as a whole: the published filter looks for a substring, and ``rain`` is in
``train``; ``--published.substring`` does as it does. Absent classes pull ``miou_all`` of a small
group down, so both means are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from fastseg.evaluation.protocols.base import Outcome, Protocol
from fastseg.evaluation.scoring.cases import NOTHING
from fastseg.evaluation.scoring.scorer import Cell, Scorer
from fastseg.pipelines.datasets.spec import DatasetSpec
from fastseg.report.details import DetailTable

Chosen = Callable[[Cell], bool]
ALL = "all samples"
NORMAL = "normal"


class Conditions(Protocol):
    """A row per condition, pair of conditions and failure case."""

    name: ClassVar[str] = "conditions"
    statement: ClassVar[str] = "conditions and failure cases of the data set, all sensors there"

    def why_not(self, scorer: Scorer) -> str:
        """The data set names neither conditions nor cases."""
        spec = scorer.files.spec
        if spec.conditions or spec.cases:
            return ""
        return (
            f"the paths of {spec.name} name no conditions and no failure cases, as those of "
            "deliver and muses do"
        )

    def run(self, scorer: Scorer) -> Outcome:
        """MIoU over all classes, and over those that occur, per network."""
        case, outcome = scorer.case(scorer.full), Outcome()
        rows: dict[str, list[float]] = {}
        by = groups_by_substring if scorer.config.published.substring else groups
        for name, chosen in by(scorer.files.spec).items():
            count = scorer.number_of(chosen)
            row = rows.setdefault(f"{name}, {count} sample{'s' * (count != 1)}", [])
            for network in scorer.networks:
                measures = scorer.score(network, case, chosen)
                if not count:
                    row += [math.nan] * 2
                    continue
                row += [100 * measures[score] for score in ("miou_all", "miou_present")]
                outcome.rows += self.rows(scorer, network, case, measures, name, samples=count)
        columns = [f"{name}{kind}" for name in scorer.networks for kind in ("", " present")]
        heading = self.heading(scorer, NOTHING)
        heading += "\npresent: mIoU over the classes that occur in a group"
        outcome.tables.append(DetailTable(heading, tuple(columns), rows))
        return outcome


def groups(spec: DatasetSpec) -> dict[str, Chosen]:
    """Groups of samples by name, each a function of their cell."""
    found: dict[str, Chosen] = {ALL: lambda cell: True}
    for place, condition in enumerate(spec.conditions):
        for value in condition.values:
            found[value] = _at(place, value)
    if len(spec.conditions) == 2:
        first, second = (condition.values for condition in spec.conditions)
        for one in first:
            for other in second:
                found[f"{one} {other}"] = _both(_at(0, one), _at(1, other))
    if spec.cases:
        for case in (NORMAL, *spec.cases):
            found[case] = _at(-1, case)
    return found


def groups_by_substring(spec: DatasetSpec) -> dict[str, Chosen]:
    """The groups of the published filter; it crosses nothing and knows no normal scenes."""
    names = [*(v for condition in spec.conditions for v in condition.values), *spec.cases]
    return {ALL: lambda cell: True} | {name: _in_path(name) for name in names}


def _in_path(name: str) -> Chosen:
    return lambda cell: name in cell[-1]


def _at(place: int, value: str) -> Chosen:
    return lambda cell: cell[place] == value


def _both(first: Chosen, second: Chosen) -> Chosen:
    return lambda cell: first(cell) and second(cell)
