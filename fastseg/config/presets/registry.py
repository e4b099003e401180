"""All recipes by name. Each docstring holds the command, the expected time and score."""

from __future__ import annotations

from collections.abc import Callable

from fastseg.config.presets.deliver import deliver_robustseg_b0, deliver_robustseg_b2
from fastseg.config.presets.demo import debug, demo
from fastseg.config.presets.mcubes import mcubes_robustseg_b0, mcubes_robustseg_b2
from fastseg.config.presets.muses import (
    muses_robustseg_b0,
    muses_robustseg_b0_published,
    muses_robustseg_b2,
)
from fastseg.config.presets.study import (
    study_dropout,
    study_hpdm,
    study_logit_kd,
    study_robustseg,
    study_teacher,
)
from fastseg.config.run import TrainConfig
from fastseg.errors import ConfigError
from fastseg.pipelines.tools.unknown import unknown

PRESETS: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__: preset
    for preset in (
        demo,
        debug,
        deliver_robustseg_b0,
        deliver_robustseg_b2,
        muses_robustseg_b0,
        muses_robustseg_b2,
        muses_robustseg_b0_published,
        mcubes_robustseg_b0,
        mcubes_robustseg_b2,
        study_teacher,
        study_dropout,
        study_logit_kd,
        study_hpdm,
        study_robustseg,
    )
}


def get_preset(name: str) -> TrainConfig:
    """The recipe of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]()
