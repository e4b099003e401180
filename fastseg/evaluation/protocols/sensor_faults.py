"""Complete inputs with one fault in one sensor of every sample: each fault by each sensor.

The faults are the product's own, `fastseg.pipelines.faults.sensor_faults`, each with probability 1
and the parameters of ``--corruption.*``. The first sample of a scene has none before it to freeze.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

from fastseg.evaluation.protocols.base import Outcome, Protocol
from fastseg.evaluation.scoring.cases import NOTHING, Case
from fastseg.evaluation.scoring.scorer import Scorer
from fastseg.pipelines import CorruptionConfig
from fastseg.pipelines.config import FAULTS
from fastseg.pipelines.faults.sensor_faults import Corruptor, can_have
from fastseg.report.details import DetailTable

REMARK = "every sample is hit; the first one of a scene has none before it to freeze"


class SensorFaults(Protocol):
    """A table per network: faults by sensors."""

    name: ClassVar[str] = "sensor_faults"
    statement: ClassVar[str] = "one sensor of every sample has a fault, the others deliver"

    def run(self, scorer: Scorer) -> Outcome:
        """A row per fault, a column per sensor; ``-`` where a sensor cannot have it."""
        outcome, cases = Outcome(), faulty_cases(scorer)
        letters = tuple(modality.letter for modality in scorer.files.modalities)
        plain = scorer.case(scorer.full, faults=no_faults(scorer.faults))
        for network in scorer.networks:
            healthy = scorer.score(network, plain)
            rows = {"none": [100 * healthy["miou_all"]] * len(letters)}
            outcome.rows += self.rows(scorer, network, plain, healthy, "none")
            for (fault, letter), case in cases.items():
                measures = scorer.score(network, case)
                row = rows.setdefault(fault, [math.nan] * len(letters))
                row[letters.index(letter)] = 100 * measures["miou_all"]
                outcome.rows += self.rows(scorer, network, case, measures, f"{fault} {letter}")
            heading = f"{self.heading(scorer, NOTHING)}\n{REMARK}; scores of the {network}"
            outcome.tables.append(DetailTable(heading, letters, rows))
        return outcome


def no_faults(config: CorruptionConfig) -> CorruptionConfig:
    """The parameters of faults alone, none of which hits."""
    none: dict[str, Any] = dict.fromkeys(FAULTS, 0.0)
    return replace(config, **none, noise="none", modalities=())


def faulty_cases(scorer: Scorer) -> dict[tuple[str, str], Case]:
    """The case of each fault and sensor that can have it, by the fault's name and the letter."""
    plain, found = no_faults(scorer.faults), {}
    for fault in FAULTS:
        for modality in scorer.files.modalities:
            always: dict[str, Any] = {fault: 1.0}
            faults = replace(plain, **always, modalities=(modality.name,))
            frozen = fault != "freeze" or Corruptor(faults, scorer.files, 0).before
            if can_have(modality, fault) and frozen:
                case = scorer.case(scorer.full, faults=faults)
                found[fault, modality.letter] = case
    return found
