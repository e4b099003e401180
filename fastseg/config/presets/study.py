"""The comparison of methods on small synthetic scenes: one budget, one data set, a method by name.

A student learns from 24 frames and starts from a teacher of 600, which is better on complete
input than any student trained on those frames. The results are in ``docs/studies.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastseg.config.presets.demo import demo, demo_stages, per_sample
from fastseg.config.presets.methods import RECIPES
from fastseg.config.presets.parts import MethodRecipe, Stages
from fastseg.config.run import TrainConfig
from fastseg.config.sections import EvaluationConfig, SyntheticData
from fastseg.errors import ConfigError
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.methods.stage import NOBODY, Stage
from fastseg.pipelines.tools.unknown import unknown

TEACHER_FRAMES, STUDENT_FRAMES, STUDENT_STEPS = 600, 24, 640

_BY_NAME = {recipe.name: recipe for recipe in RECIPES if recipe.studied}


def _hpdm(stage: Stage) -> Stage:
    return replace(per_sample(stage), losses=RobustSegWeights(ohem=1, logit=50, hpdm=1))


STUDIED: dict[str, tuple[MethodRecipe, Callable[[Stage], Stage]]] = {
    **{name: (recipe, per_sample) for name, recipe in _BY_NAME.items()},
    "hpdm": (_BY_NAME["robustseg"], _hpdm),
    **{
        f"{name}_per_batch": (_BY_NAME[name], lambda stage: stage)
        for name in ("dropout", "logit_kd", "robustseg")
    },
}
"""Recipes of the study by name, each with a change of the stages behind the teacher's.

Those ``per_batch`` draw one subset for all samples of a step, as published.
"""


def study(method: str) -> TrainConfig:
    """The config of one method of the study.

    The stages behind the teacher's differ between methods; all of them together have the same
    number of steps, and what learns in them starts from the teacher. Give the weights of a finished
    `study_teacher` with ``--teacher FILE``; without them the teacher, too, learns from 24 frames.

    Raises:
        ConfigError: there is no such method; the message names the nearest.
    """
    if method not in STUDIED:
        raise ConfigError(unknown("method of the study", method, STUDIED))
    recipe, change = STUDIED[method]
    config = _base(f"study_{method}", STUDENT_FRAMES)
    stages = demo_stages(recipe)
    teacher = replace(config.stages["teacher"], losses=recipe.teacher_losses or recipe.weights())
    later = {name: change(stage) for name, stage in stages.items() if name != "teacher"}
    return replace(
        config,
        method=recipe.method,
        stages={"teacher": teacher} | _with_steps(later, teacher),
        losses=recipe.losses(**(dict(recipe.options) | dict(recipe.small_options))),
    )


def study_teacher() -> TrainConfig:
    """The teacher of the study; the student's stage is cut to one step, it only ends the run.

    ``python -m fastseg.train --preset study_teacher``

    Two minutes on one core. Mean mIoU over 15 subsets, seed 0: 20; with all modalities 60.
    """
    config = _base("study_teacher", TEACHER_FRAMES)
    student = replace(
        config.stages["student"],
        losses=config.stages["teacher"].losses,
        steps=1,
        learns_from=NOBODY,
    )
    return replace(config, stages=config.stages | {"student": student})


def study_recipes() -> list[Callable[[], TrainConfig]]:
    """``study_<method>`` of every method of the study."""
    return [study_teacher, *(_preset(method) for method in STUDIED)]


def _preset(method: str) -> Callable[[], TrainConfig]:
    def preset() -> TrainConfig:
        return study(method)

    preset.__name__ = preset.__qualname__ = f"study_{method}"
    preset.__doc__ = (
        f"{method} in the study of methods, a minute or two on one core; scores are in "
        "docs/studies.md.\n\n"
        f"``python -m fastseg.train --preset study_{method} --teacher FILE``"
    )
    return preset


def _with_steps(stages: Stages, teacher: Stage) -> Stages:
    """The stages with the study's steps in all, shared as their epochs are, from the teacher."""
    epochs = sum(stage.epochs for stage in stages.values())
    return {
        name: replace(
            stage,
            steps=round(STUDENT_STEPS * stage.epochs / epochs),
            lr=4e-3,
            start="teacher" if stage.start == "random" else stage.start,
        )
        for name, stage in stages.items()
    }


def _base(name: str, frames: int) -> TrainConfig:
    """The demo at 64 pixels on that many training frames, without validations in between."""
    config = demo()
    teacher = replace(config.stages["teacher"], steps=1800)
    return replace(
        config,
        name=name,
        data=replace(config.data, root=Path(f"data/synthetic-64-{frames}"), size=64),
        synthetic=SyntheticData(train=frames, val=150, size=64),
        stages=config.stages | {"teacher": teacher},
        evaluation=EvaluationConfig(every=100_000, pictures=0),
        save_every=100_000,
    )
