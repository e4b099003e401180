"""What a network has seen in its training, as far as the config of its run tells."""

from __future__ import annotations

from fastseg.config.run import TrainConfig
from fastseg.methods.stage import Stage
from fastseg.pipelines.faults.sensor_faults import describe

UNKNOWN = "not known"


def training_note(config: TrainConfig, network: str) -> str:
    """Say whether a network was trained with missing modalities, and with faults of sensors.

    Args:
        config: of its run.
        network: its name.

    Returns:
        Such as ``all modalities, no faults`` or ``random subsets (drop, per sample), faults:
        blackout 0.1``; ``not known`` if no stage of the config trains it.
    """
    stages = [s for s in config.stages.values() if network in s.learners and not config.skips(s)]
    if not stages:
        return UNKNOWN
    own = config.build_method().seen.get(network)
    seen = own or ", then ".join(dict.fromkeys(map(_seen, stages)))
    faults = config.data.corruption
    return f"{seen}, {f'faults: {describe(faults)}' if faults.active else 'no faults'}"


def _seen(stage: Stage) -> str:
    if stage.modalities == "full":
        return "all modalities"
    return f"random subsets ({stage.modalities}, per {stage.modalities_per})"
