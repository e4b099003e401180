"""Every subset of the sensors, the missing ones left out, and the same with zeros in their place.

Left out is the convention of the any-modality papers (arXiv:2407.11351, 2411.17141), zeros that of
the robustness benchmark (arXiv:2503.18445). Scores of the two differ for the same weights, since
an image of zeros has features too: they never share a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, get_args

from fastseg.evaluation.protocols.base import Outcome, Protocol
from fastseg.evaluation.scoring.cases import Case, Missing
from fastseg.evaluation.scoring.measures import Measures, times, weighted
from fastseg.evaluation.scoring.published import SELECTION, SELECTION_OVER
from fastseg.evaluation.scoring.scorer import Scorer
from fastseg.report.results import MEAN

IN_WORDS: dict[Missing, str] = {
    "drop": "left out of the fusion (drop)",
    "zero": "set to 0 after normalisation (zero)",
}

CHOSEN = "Selection"
"""Column of the score by which the released training chooses a student."""


class Subsets(Protocol):
    """One table per treatment of missing modalities."""

    name: ClassVar[str] = "subsets"
    statement: ClassVar[str] = "every subset of the sensors"

    def run(self, scorer: Scorer) -> Outcome:
        """A row per network, a column per subset, then their unweighted mean."""
        outcome = Outcome()
        treatments: tuple[Missing, ...] = get_args(Missing)
        cases = {
            missing: [scorer.case(subset, missing=missing) for subset in scorer.subsets]
            for missing in treatments
        }
        scorer.count(case for found in cases.values() for case in found)
        columns = [*(subset.name for subset in scorer.subsets), MEAN]
        columns += [CHOSEN] * scorer.config.published.selection
        for missing, found in cases.items():
            rows = {}
            for network in scorer.networks:
                scores = [scorer.score(network, case) for case in found]
                mean = weighted(scores, [1.0] * len(scores))
                rows[network] = [*scores, mean]
                for case, measures in zip(found, scores, strict=True):
                    outcome.rows += self.rows(scorer, network, case, measures)
                outcome.rows += self.rows(scorer, network, found[0], mean, subset=MEAN)
                if scorer.config.published.selection:
                    chosen = selection(found, scores)
                    rows[network].append(chosen)
                    more = self.rows(scorer, network, found[0], chosen, subset=CHOSEN)
                    outcome.rows += [row for row in more if row.score == "miou_all"]
            outcome.tables.append(self.table(scorer, IN_WORDS[missing], columns, rows))
        return outcome


def selection(cases: Sequence[Case], scores: Sequence[Measures]) -> Measures:
    """The sum of four scores over 3 or 4, see `PublishedConfig`.

    Args:
        cases: one for each subset of R, D, E and L, of one treatment.
        scores: one each.
    """
    four = [s for case, s in zip(cases, scores, strict=True) if case.subset.name in SELECTION]
    mean = weighted(four, [1.0] * len(four))
    return times(mean, len(SELECTION) / SELECTION_OVER[cases[0].missing])
