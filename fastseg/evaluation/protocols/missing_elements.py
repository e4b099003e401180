"""Random-missing (RMM) of the robustness benchmark, arXiv:2503.18445: sensors with holes.

For every subset of the sensors the others lose a share r of the elements of their images, each
channel of each pixel by itself, zeroed after normalisation; r is what is removed. Mean and
expectations over the subsets are those of EMM. Two departures from the released
``tools/val_mm_RMM.py``: masks belong to the sample and the sensor instead of being drawn without a
seed for every batch and subset (`fastseg.pipelines.faults.missing_elements`), and all three shares
are scored.
"""

from __future__ import annotations

from typing import ClassVar

from fastseg.evaluation.protocols.base import Outcome, Protocol
from fastseg.evaluation.protocols.missing_modalities import expectations
from fastseg.evaluation.scoring.scorer import Scorer

REMOVED = (0.25, 0.5, 0.75)


class MissingElements(Protocol):
    """Mean and expectations over the subsets of sensors that are whole, for each share."""

    name: ClassVar[str] = "rmm"
    statement: ClassVar[str] = (
        "each element of the missing sensors is gone with probability r (RMM)"
    )

    def run(self, scorer: Scorer) -> Outcome:
        """A row per network and share."""
        outcome, rows, columns = Outcome(), {}, []
        cases = {
            r: [scorer.case(subset, missing="zero", removed=r) for subset in scorer.subsets]
            for r in REMOVED
        }
        scorer.count(case for found in cases.values() for case in found)
        for network in scorer.networks:
            for r, found in cases.items():
                scores = [scorer.score(network, case) for case in found]
                means = expectations(scorer.subsets, scores)
                columns = [scorer.full.name, *means]
                rows[f"{network}, r {r:g}"] = [scores[-1], *means.values()]
                for case, measures in zip(found, scores, strict=True):
                    outcome.rows += self.rows(scorer, network, case, measures)
                for name, measures in means.items():
                    outcome.rows += self.rows(scorer, network, found[0], measures, subset=name)
        words = "share r of the elements set to 0 after normalisation (zero)"
        outcome.tables.append(self.table(scorer, words, columns, rows))
        return outcome
