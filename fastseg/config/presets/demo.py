"""Small recipes on the synthetic data set: demos of minutes and runs of seconds, per method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastseg.config.presets.methods import RECIPES, two_stages
from fastseg.config.presets.parts import MethodRecipe, Stages
from fastseg.config.run import TrainConfig
from fastseg.config.sections import EvaluationConfig, ModelConfig, SyntheticData
from fastseg.methods.robustseg import LossOptions, RobustSegWeights
from fastseg.methods.stage import Stage
from fastseg.pipelines import DataConfig

# what the demo of a method trains in all, in epochs, and the part of it that a teacher takes
_EPOCHS, _TEACHER_EPOCHS = 24, 8


def _first() -> Stage:
    """The first stage of a demo: complete inputs, from random weights."""
    return Stage(
        trains="teacher",
        start="random",
        losses=RobustSegWeights(),
        epochs=_TEACHER_EPOCHS,
        lr=6e-3,
        warmup_epochs=1,
    )


def demo() -> TrainConfig:
    """The main job in small, on the synthetic data set, for a CPU with two cores.

    ``python -m fastseg.train``

    About three minutes, data included. The student learns from the labels alone, with a
    subset of modalities for each sample: no distillation has bettered that in so short a training,
    see docs/studies.md. Mean mIoU over 15 subsets, seed 0: teacher 24, student 49; with all
    modalities 65 and 67.
    """
    teacher = _first()
    return TrainConfig(
        name="demo",
        data=DataConfig(
            root=Path("data/synthetic-128"),
            size=128,
            batch_size=8,
            eval_batch_size=10,
            scale=(0.8, 1.5),
            # in line: beside two busy cores a loader thread costs more than it hides
            workers=0,
            cache=True,
        ),
        synthetic=SyntheticData(train=600, val=150, size=128),
        # so small a network, so short a training: nothing to regularise
        model=ModelConfig(
            backbone="mit_nano", embed_dim=64, dropout=0, drop_path=0, norm_momentum=0.01
        ),
        stages=two_stages(
            teacher,
            replace(
                teacher,
                trains="student",
                start="teacher",
                modalities="drop",
                modalities_per="sample",
                epochs=12,
                lr=4e-3,
            ),
        ),
        losses=LossOptions(rrm_samples=2),
        evaluation=EvaluationConfig(every=300, samples=50),
        save_every=200,
    )


def debug() -> TrainConfig:
    """RobustSeg for a few steps, in seconds: ``python -m fastseg.train --preset debug``."""
    (robustseg,) = (recipe for recipe in RECIPES if recipe.name == "robustseg")
    return _in_seconds(_small(robustseg), "debug")


def small_recipes() -> list[Callable[[], TrainConfig]]:
    """``demo_<method>`` and ``debug_<method>`` of every method."""
    return [preset for recipe in RECIPES for preset in (_demo_of(recipe), _debug_of(recipe))]


def demo_stages(recipe: MethodRecipe) -> Stages:
    """The stages of a method in its demo, with a subset for each batch."""
    first = replace(_first(), losses=recipe.weights())
    return recipe.small(_shared_out(recipe.stages(first)))


def per_sample(stage: Stage) -> Stage:
    """With a subset of modalities for each sample, where it leaves out any.

    One subset for a batch costs more than any method gains, see docs/studies.md.
    """
    return replace(stage, modalities_per="sample") if stage.modalities == "drop" else stage


def _small(recipe: MethodRecipe) -> TrainConfig:
    """The method on the demo's data and network."""
    return replace(
        demo(),
        model=replace(demo().model, fusion=recipe.fusion),
        method=recipe.method,
        stages=demo_stages(recipe),
        losses=recipe.losses(**(dict(recipe.options) | dict(recipe.small_options))),
    )


def _demo_of(recipe: MethodRecipe) -> Callable[[], TrainConfig]:
    """The method on the demo's data and network, for `_EPOCHS` in all; `demo` itself is shorter."""
    name = f"demo_{recipe.name}"

    def preset() -> TrainConfig:
        small = _small(recipe)
        stages = {key: per_sample(stage) for key, stage in small.stages.items()}
        return replace(small, name=name, stages=stages)

    preset.__name__ = preset.__qualname__ = name
    preset.__doc__ = (
        f"{recipe.title} in small, on the synthetic scenes: minutes on a CPU with two cores.\n\n"
        f"``python -m fastseg.train --preset {name}``"
    )
    return preset


def _debug_of(recipe: MethodRecipe) -> Callable[[], TrainConfig]:
    """A few steps of every stage of the method, with a subset for each batch."""
    name = f"debug_{recipe.name}"

    def preset() -> TrainConfig:
        return _in_seconds(_small(recipe), name)

    preset.__name__ = preset.__qualname__ = name
    preset.__doc__ = (
        f"{recipe.title}: a few steps of everything, in seconds.\n\n"
        f"``python -m fastseg.train --preset {name}``"
    )
    return preset


def _shared_out(stages: Stages) -> Stages:
    """The demo's epochs over the stages: the first of several is short, the others share the rest.

    Later stages go on from the network that they learn from.
    """
    if len(stages) == 1:
        return {name: replace(stage, epochs=_EPOCHS) for name, stage in stages.items()}
    first, *others = stages
    rest = (_EPOCHS - _TEACHER_EPOCHS) / len(others)
    return {first: stages[first]} | {
        name: replace(
            stages[name],
            epochs=rest,
            lr=4e-3,
            start=first if stages[name].start == "random" else stages[name].start,
        )
        for name in others
    }


def _in_seconds(config: TrainConfig, name: str) -> TrainConfig:
    """The recipe with a few steps per stage on a few small scenes."""
    return replace(
        config,
        name=name,
        data=replace(config.data, root=Path("data/synthetic-64"), size=64, batch_size=4),
        synthetic=SyntheticData(train=24, val=8, size=64),
        stages={
            key: replace(stage, steps=8, warmup_epochs=0) for key, stage in config.stages.items()
        },
        evaluation=EvaluationConfig(pictures=2),
        log_every=2,
        save_every=4,
    )
