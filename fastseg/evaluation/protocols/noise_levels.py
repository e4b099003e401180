"""Noise (NM) of the robustness benchmark, arXiv:2503.18445: all sensors noisy at once.

Two departures from ``tools/val_mm_NM.py``, see `fastseg.pipelines.faults.noise`: draws belong to
the sample, and salt and pepper are the extremes of the sample's image, not of the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, get_args

from fastseg.evaluation.protocols.base import Outcome, Protocol
from fastseg.evaluation.scoring.cases import NOTHING
from fastseg.evaluation.scoring.scorer import Scorer
from fastseg.pipelines import CorruptionConfig
from fastseg.pipelines.config import FAULTS

Level = Literal["none", "low", "mid", "high"]
LEVELS: tuple[Level, ...] = get_args(Level)


class NoiseLevels(Protocol):
    """Complete inputs at every level of noise."""

    name: ClassVar[str] = "nm"
    statement: ClassVar[str] = (
        "salt and pepper on all sensors, then normal noise on all but events (NM)"
    )

    def run(self, scorer: Scorer) -> Outcome:
        """A row per network, a column per level."""
        outcome, rows = Outcome(), {}
        cases = {
            level: scorer.case(scorer.full, faults=at_level(scorer.faults, level))
            for level in LEVELS
        }
        for network in scorer.networks:
            rows[network] = [scorer.score(network, case) for case in cases.values()]
            for (level, case), measures in zip(cases.items(), rows[network], strict=True):
                outcome.rows += self.rows(scorer, network, case, measures, f"noise {level}")
        outcome.tables.append(self.table(scorer, NOTHING, LEVELS, rows))
        return outcome


def at_level(faults: CorruptionConfig, level: Level) -> CorruptionConfig:
    """The faults with another level of noise."""
    others = any(getattr(faults, name) > 0 for name in FAULTS)
    # modalities are named for faults alone
    hit = faults.modalities if others or level != "none" else ()
    return replace(faults, noise=level, modalities=hit)
