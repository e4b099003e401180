"""Entire-missing (EMM) of the robustness benchmark, arXiv:2503.18445: sensors that are gone.

With every sensor gone by itself with probability p, the expectation of the mIoU is

    E(p) = sum_D w_D mIoU_D / sum_D w_D,    w_D = p^|D| (1 - p)^(M - |D|)

over the sets D of missing modalities that leave at least one: of the scores of the subsets, not of
their confusion matrices. It is exact, nothing is drawn. ``Avg`` is their plain mean. The released
``tools/val_mm_EMM.py`` fixes M = 4, whose surplus factor cancels. The benchmark zeroes missing
modalities; the table with these left out is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fastseg.evaluation.protocols.base import Outcome, Protocol
from fastseg.evaluation.protocols.subsets import IN_WORDS
from fastseg.evaluation.scoring.cases import Missing
from fastseg.evaluation.scoring.measures import Measures, weighted
from fastseg.evaluation.scoring.scorer import Scorer
from fastseg.evaluation.subsets import Subset

PROBABILITIES = (0.2, 0.1, 0.05)
AVERAGE = "Avg"
REMARKS: dict[Missing, str] = {
    "zero": "as the benchmark does; of the mIoU of the subsets, not of their matrices",
    "drop": "not the benchmark's, which sets to zero",
}


class MissingModalities(Protocol):
    """Expectations over missing sensors, by zeroing and by leaving out."""

    name: ClassVar[str] = "emm"
    statement: ClassVar[str] = (
        "expectation E(p) of the mIoU where each sensor is gone with probability p (EMM)"
    )

    def run(self, scorer: Scorer) -> Outcome:
        """A table per treatment: complete input, plain mean over the subsets, E(p)."""
        outcome = Outcome()
        for missing in REMARKS:
            rows = {}
            cases = [scorer.case(subset, missing=missing) for subset in scorer.subsets]
            scorer.count(cases)
            for network in scorer.networks:
                scores = [scorer.score(network, case) for case in cases]
                means = expectations(scorer.subsets, scores)
                rows[network] = [scores[-1], *means.values()]
                for name, measures in means.items():
                    outcome.rows += self.rows(scorer, network, cases[0], measures, subset=name)
            columns = [scorer.full.name, *means]
            table = self.table(scorer, IN_WORDS[missing], columns, rows, REMARKS[missing])
            outcome.tables.append(table)
        return outcome


def expectations(subsets: Sequence[Subset], scores: Sequence[Measures]) -> dict[str, Measures]:
    """``Avg`` and ``E(p)`` for all p, by name.

    Args:
        subsets: all non-empty subsets, the full set last.
        scores: one each.
    """
    found = {AVERAGE: weighted(scores, [1.0] * len(scores))}
    for p in PROBABILITIES:
        found[f"E({p:g})"] = weighted(scores, subset_weights(subsets, p))
    return found


def subset_weights(subsets: Sequence[Subset], p: float) -> list[float]:
    """Probability of each subset where every modality is gone with probability ``p``."""
    count = len(subsets[-1].positions)
    there = [len(subset.positions) for subset in subsets]
    return [p ** (count - k) * (1 - p) ** k for k in there]
