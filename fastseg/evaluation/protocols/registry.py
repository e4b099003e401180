"""The protocols by name, and how a command runs those that it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from fastseg.console import say
from fastseg.errors import ConfigError
from fastseg.evaluation.protocols.base import Outcome, Protocol
from fastseg.evaluation.protocols.conditions import Conditions
from fastseg.evaluation.protocols.full import Full
from fastseg.evaluation.protocols.missing_elements import MissingElements
from fastseg.evaluation.protocols.missing_modalities import MissingModalities
from fastseg.evaluation.protocols.noise_levels import NoiseLevels
from fastseg.evaluation.protocols.sensor_faults import SensorFaults
from fastseg.evaluation.protocols.subsets import Subsets
from fastseg.evaluation.scoring.scorer import Scorer
from fastseg.pipelines.tools.unknown import unknown

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Full(),
        Subsets(),
        MissingModalities(),
        MissingElements(),
        NoiseLevels(),
        Conditions(),
        SensorFaults(),
    )
}
"""In the order in which they run, whatever the order in which they are asked for."""
ALL = "all"


def chosen(names: Sequence[str]) -> list[Protocol]:
    """The protocols of these names; ``all`` stands for every one.

    Raises:
        ConfigError: a name is unknown.
    """
    for name in names:
        if name not in (ALL, *PROTOCOLS):
            raise ConfigError(unknown("protocol", name, (ALL, *PROTOCOLS)))
    return [p for name, p in PROTOCOLS.items() if ALL in names or name in names]


def run_protocols(scorer: Scorer, names: Sequence[str]) -> Outcome:
    """Run protocols one after the other; of ``all``, those that the data set has what it takes for.

    All processes of a launch call it.

    Raises:
        ConfigError: a protocol that was named cannot score this split.
    """
    protocols, outcome = chosen(names), Outcome()
    refused = {p.name: reason for p in protocols if (reason := p.why_not(scorer))}
    for name, reason in refused.items():
        if name in names:
            raise ConfigError(f"--protocols {name}: {reason}; leave it out")
        if scorer.context.ranks.is_first:
            say(f"note: {name} is left out: {reason}")
    for protocol in protocols:
        if protocol.name not in refused:
            found = protocol.run(scorer)
            outcome.tables += found.tables
            # where nothing is missing, several treatments are one
            outcome.rows += {row.place: row for row in found.rows}.values()
    return outcome
