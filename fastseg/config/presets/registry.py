"""Whole recipes by name. Each docstring holds the command, the expected time and score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastseg.config.run import TrainConfig
from fastseg.config.sections import EvaluationConfig, ModelConfig, SyntheticData
from fastseg.errors import ConfigError
from fastseg.methods.robustseg import LossOptions, RobustSegWeights
from fastseg.methods.stage import Stage
from fastseg.pipelines import DataConfig
from fastseg.pipelines.tools.unknown import unknown


def two_stages(teacher: Stage, student: Stage) -> dict[str, Stage]:
    """The order of every recipe here: a teacher on complete input, then a student."""
    return {"teacher": teacher, "student": student}


def demo() -> TrainConfig:
    """The main job in small, on the synthetic data set, for a CPU with two cores.

    ``python -m fastseg.train``

    Between four and five minutes, data included. Mean mIoU over 15 subsets, seed 0: teacher 24,
    student 40; with all modalities 66 and 66.
    """
    teacher = Stage(
        trains="teacher",
        start="random",
        losses=RobustSegWeights(),
        epochs=8,
        lr=6e-3,
        warmup_epochs=1,
    )
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
                losses=RobustSegWeights(ohem=1, logit=50, hpdm=1, rrm=0.01),
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
    data = DataConfig(
        dataset="deliver", root=Path("data/DELIVER"), size=1024, jitter=0.2, blur=0.2, workers=8
    )
    return _robustseg("deliver_robustseg_b0", data)


def deliver_robustseg_b2() -> TrainConfig:
    """As ``deliver_robustseg_b0`` with MiT-B2, the backbone of the robustness tables."""
    return _with_b2(deliver_robustseg_b0())


def muses_robustseg_b0() -> TrainConfig:
    """RobustSeg on MUSES with MiT-B0: crops of 1024 x 1024, physical units, 255 ignored.

    ``python -m fastseg.train --preset muses_robustseg_b0 --data.root DIR --model.weights FILE``

    Evaluation is on whole images with a short side of 1024. The learning rate is the one published
    for MUSES with this backbone (AnySeg, arXiv:2411.17141), the augmentation is DELIVER's. No
    published number belongs to this reading: see ``muses_robustseg_b0_published``.
    """
    data = DataConfig(
        dataset="muses",
        root=Path("data/MUSES"),
        size=1024,
        eval_batch_size=2,
        jitter=0.2,
        blur=0.2,
        workers=8,
    )
    return _robustseg("muses_robustseg_b0", data, lr=1.2e-4)


def muses_robustseg_b2() -> TrainConfig:
    """As ``muses_robustseg_b0`` with MiT-B2, the backbone of the robustness tables."""
    return _with_b2(muses_robustseg_b0())


def muses_robustseg_b0_published() -> TrainConfig:
    """MUSES as the released loader feeds it, to compare with published tables.

    ``python -m fastseg.train --preset muses_robustseg_b0_published --data.root DIR ...``

    High bytes, no whitening, no augmentation, images squashed to 1024 x 1024, and void trained and
    scored as road (``muses-robustseg``). Published for AnySeg on the like: mean 40.23 of 7 subsets.
    """
    config = muses_robustseg_b0()
    data = replace(
        config.data, dataset="muses-robustseg", scale=(1.0, 1.0), flip=0, jitter=0, blur=0
    )
    return replace(config, name="muses_robustseg_b0_published", data=data)


def mcubes_robustseg_b0() -> TrainConfig:
    """RobustSeg on MCubeS with MiT-B0: crops of 512 x 512, evaluation at 1024.

    ``python -m fastseg.train --preset mcubes_robustseg_b0 --data.root DIR --model.weights FILE``

    Batch, length and augmentation are CMNeXt's (arXiv:2303.01480): 500 epochs, blur of the crops of
    both cameras. Scores are on the list test, as published; but the published ones are of the best
    epoch on it (CMNeXt with MiT-B0: 36.16), these of the last. Published evaluation crops 1024 x
    1024 from the middle; here the image is resized as a whole.
    """
    data = DataConfig(
        dataset="mcubes",
        root=Path("data/MCubeS"),
        eval_split="test",
        size=512,
        eval_size=1024,
        batch_size=4,
        eval_batch_size=2,
        blur=0.5,
        blur_sigma=(0.0, 1.0),
        blur_window=0,
        blur_place="crop",
        workers=8,
    )
    return _robustseg("mcubes_robustseg_b0", data, epochs=500)


def mcubes_robustseg_b2() -> TrainConfig:
    """As ``mcubes_robustseg_b0`` with MiT-B2 (CMNeXt with it, and all modalities: 51.54)."""
    return _with_b2(mcubes_robustseg_b0())


def _robustseg(name: str, data: DataConfig, lr: float = 6e-5, epochs: float = 200) -> TrainConfig:
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


def _with_b2(config: TrainConfig) -> TrainConfig:
    name = config.name.replace("_b0", "_b2")
    return replace(config, name=name, model=replace(config.model, backbone="mit_b2"))


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
