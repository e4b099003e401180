"""Complete inputs: every sensor delivers."""

from __future__ import annotations

from typing import ClassVar

from fastseg.evaluation.protocols.base import Outcome, Protocol
from fastseg.evaluation.scoring.cases import NOTHING
from fastseg.evaluation.scoring.measures import MEANS
from fastseg.evaluation.scoring.scorer import Scorer
from fastseg.report.details import DetailTable


class Full(Protocol):
    """All means of the scores on complete inputs."""

    name: ClassVar[str] = "full"
    statement: ClassVar[str] = "all sensors deliver"

    def run(self, scorer: Scorer) -> Outcome:
        """One row per network, one column per mean."""
        case, rows, outcome = scorer.case(scorer.full), {}, Outcome()
        for network in scorer.networks:
            measures = scorer.score(network, case)
            rows[network] = [100 * measures[name] for name in MEANS]
            if scorer.config.resamples:
                ends = zip(*(measures.interval(name) for name in MEANS), strict=True)
                for end, values in zip(("from", "to"), ends, strict=True):
                    rows[f"{network}, {end}"] = [100 * value for value in values]
            outcome.rows += self.rows(scorer, network, case, measures)
        heading = self.heading(scorer, NOTHING)
        outcome.tables.append(DetailTable(heading, MEANS, rows))
        return outcome
