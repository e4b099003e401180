"""Parts that the recipes of RobustSeg share."""

from __future__ import annotations

from dataclasses import replace

from fastseg.config.run import TrainConfig
from fastseg.config.sections import ModelConfig
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.methods.stage import Stage
from fastseg.pipelines import DataConfig


def two_stages(teacher: Stage, student: Stage) -> dict[str, Stage]:
    """The order of every recipe here: a teacher on complete input, then a student."""
    return {"teacher": teacher, "student": student}


def robustseg(name: str, data: DataConfig, lr: float = 6e-5, epochs: float = 200) -> TrainConfig:
    """Both stages of RobustSeg with MiT-B0 on any data set."""
    teacher = Stage(
        trains="teacher",
        start="encoder",
        losses=RobustSegWeights(),
        epochs=epochs,
        lr=lr,
        warmup_epochs=10,
    )
    student = replace(
        teacher,
        trains="student",
        learns_from="teacher",
        modalities="drop",
        losses=RobustSegWeights(ohem=1, logit=50, hpdm=100),
    )
    return TrainConfig(
        name=name,
        seed=3407,
        precision="auto",
        data=data,
        model=ModelConfig(backbone="mit_b0", embed_dim=768),
        stages=two_stages(teacher, student),
    )


def with_b2(config: TrainConfig) -> TrainConfig:
    """The same recipe with MiT-B2."""
    name = config.name.replace("_b0", "_b2")
    return replace(config, name=name, model=replace(config.model, backbone="mit_b2"))
