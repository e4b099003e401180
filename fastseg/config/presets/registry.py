"""All recipes by name. Each docstring holds the command, sources of its numbers, time and score."""

from __future__ import annotations

from collections.abc import Callable

from fastseg.config.presets.data import DELIVER, MCUBES, MUSES, MUSES_PUBLISHED
from fastseg.config.presets.demo import debug, demo, small_recipes
from fastseg.config.presets.methods import RECIPES
from fastseg.config.presets.parts import compose
from fastseg.config.presets.study import study_recipes
from fastseg.config.run import TrainConfig
from fastseg.errors import ConfigError
from fastseg.pipelines.tools.unknown import unknown

Preset = Callable[[], TrainConfig]

_REAL = [
    compose(data, method, backbone)
    for data in (DELIVER, MUSES, MCUBES)
    for method in RECIPES
    for backbone in ("b0", "b2")
]

_CMNEXT = [
    compose(DELIVER, method, "cmnext_b2")
    for method in RECIPES
    if method.name in ("plain", "dropout", "logit_kd")
]

_FOUNDATION = [
    compose(data, RECIPES[0], backbone)
    for data in (DELIVER, MUSES, MCUBES)
    for backbone in ("dinov2_small", "dinov2_base")
]

PRESETS: dict[str, Preset] = {
    preset.__name__: preset
    for preset in (
        demo,
        debug,
        *small_recipes(),
        *_REAL,
        *_CMNEXT,
        *_FOUNDATION,
        compose(MUSES_PUBLISHED, RECIPES[0], "b0", "published"),
        *study_recipes(),
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
