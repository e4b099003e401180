"""Whole recipes by name. Each docstring holds the command, the expected time and score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastseg.config import (
    EvaluationConfig,
    ModelConfig,
    SyntheticData,
    TrainConfig,
    unknown,
)
from fastseg.errors import ConfigError
from fastseg.losses import LossOptions
from fastseg.pipelines import DataConfig
from fastseg.schedule import LossWeights, Stage


def two_stages(teacher: Stage, student: Stage) -> dict[str, Stage]:
    """The order of every recipe here: a teacher on complete input, then a student."""
    return {"teacher": teacher, "student": student}


def demo() -> TrainConfig:
    """The main job in small, on the synthetic data set, for a CPU with two cores.

    ``python -m fastseg.train``

    Under four minutes, data included. Mean mIoU over 15 subsets, three seeds: teacher 22, student
    37; with all modalities 62 and 63 (``bench/results/ablation.md``).
    """
    teacher = Stage(trains="teacher", start="random", epochs=8, lr=6e-3, warmup_epochs=1)
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
                learns_from="teacher",
                start="teacher",
                modalities="drop",
                losses=LossWeights(ohem=1, logit=50, hpdm=1, rrm=0.01),
                epochs=16,
                lr=4e-3,
            ),
        ),
        losses=LossOptions(rrm_samples=2),
        evaluation=EvaluationConfig(every=300, samples=50),
        save_every=200,
    )


def debug() -> TrainConfig:
    """A few steps of everything, in seconds: ``python -m fastseg.train --preset debug``."""
    config = demo()
    return replace(
        config,
        name="debug",
        data=replace(config.data, root=Path("data/synthetic-64"), size=64, batch_size=4),
        synthetic=SyntheticData(train=24, val=8, size=64),
        stages={
            name: replace(stage, steps=8, warmup_epochs=0) for name, stage in config.stages.items()
        },
        evaluation=EvaluationConfig(pictures=2),
        log_every=2,
        save_every=4,
    )


def deliver_robustseg_b0() -> TrainConfig:
    """RobustSeg (arXiv:2505.12861v1) on DELIVER with MiT-B0 at 1024 x 1024.

    ``python -m fastseg.train --preset deliver_robustseg_b0 --data.root DIR --model.weights FILE``

    Published with this recipe's teacher: 61.92 mIoU on val with all modalities. The regulariser
    RRM is off, as in the authors' later versions; ``--stages.student.losses.rrm`` turns it on.
    """
    teacher = Stage(trains="teacher", start="encoder", epochs=200, lr=6e-5, warmup_epochs=10)
    student = replace(
        teacher,
        trains="student",
        learns_from="teacher",
        modalities="drop",
        losses=LossWeights(ohem=1, logit=50, hpdm=100),
    )
    return TrainConfig(
        name="deliver_robustseg_b0",
        seed=3407,
        data=DataConfig(
            dataset="deliver",
            root=Path("data/DELIVER"),
            size=1024,
            jitter=0.2,
            blur=0.2,
            workers=8,
        ),
        model=ModelConfig(backbone="mit_b0", embed_dim=768),
        stages=two_stages(teacher, student),
    )


def deliver_robustseg_b2() -> TrainConfig:
    """As ``deliver_robustseg_b0`` with MiT-B2, the backbone of the robustness tables."""
    config = deliver_robustseg_b0()
    return replace(
        config, name="deliver_robustseg_b2", model=replace(config.model, backbone="mit_b2")
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__: preset for preset in (demo, debug, deliver_robustseg_b0, deliver_robustseg_b2)
}


def get_preset(name: str) -> TrainConfig:
    """The recipe of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]()
