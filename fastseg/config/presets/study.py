"""The comparison of methods on small synthetic scenes: one budget, one data set, a method by name.

A student learns from 24 frames and starts from a teacher of 600, which is better on complete
input than any student trained on those frames. The results are in ``docs/studies.md``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastseg.config.presets.demo import demo
from fastseg.config.presets.robustseg import two_stages
from fastseg.config.run import TrainConfig
from fastseg.config.sections import EvaluationConfig, SyntheticData
from fastseg.errors import ConfigError
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.methods.stage import NOBODY
from fastseg.pipelines.tools.unknown import unknown

STUDIED: dict[str, RobustSegWeights] = {
    "dropout": RobustSegWeights(),
    "logit_kd": RobustSegWeights(logit=50),
    "hpdm": RobustSegWeights(logit=50, hpdm=1),
    "robustseg": RobustSegWeights(logit=50, hpdm=1, rrm=0.01),
}
"""Loss terms of the student by name of the method."""

TEACHER_FRAMES, STUDENT_FRAMES = 600, 24


def study(method: str) -> TrainConfig:
    """The config of one method of the study.

    The student's stage alone differs between methods. Give the weights of a finished
    `study_teacher` with ``--teacher FILE``; without them the teacher, too, learns from 24 frames.

    Raises:
        ConfigError: there is no such method; the message names the nearest.
    """
    if method not in STUDIED:
        raise ConfigError(unknown("method of the study", method, STUDIED))
    config = _base(f"study_{method}", STUDENT_FRAMES)
    losses = STUDIED[method]
    student = replace(
        config.stages["student"],
        losses=losses,
        steps=640,
        # without a term that compares with it the teacher need not run
        learns_from="teacher" if losses.distilled() else NOBODY,
    )
    return replace(config, stages=two_stages(config.stages["teacher"], student))


def study_teacher() -> TrainConfig:
    """The teacher of the study; the student's stage is cut to one step, it only ends the run.

    ``python -m fastseg.train --preset study_teacher``

    Two minutes on one core. Mean mIoU over 15 subsets, seed 0: 20; with all modalities 60.
    """
    config = _base("study_teacher", TEACHER_FRAMES)
    student = replace(
        config.stages["student"], losses=RobustSegWeights(), steps=1, learns_from=NOBODY
    )
    return replace(config, stages=two_stages(config.stages["teacher"], student))


def study_dropout() -> TrainConfig:
    """Cross-entropy under modality dropout, without distillation: what the others are held to.

    ``python -m fastseg.train --preset study_dropout --teacher FILE``

    A minute on one core. The score is in ``docs/studies.md``.
    """
    return study("dropout")


def study_logit_kd() -> TrainConfig:
    """Dropout training with logit distillation.

    ``python -m fastseg.train --preset study_logit_kd --teacher FILE``

    A minute on one core. The score is in ``docs/studies.md``.
    """
    return study("logit_kd")


def study_hpdm() -> TrainConfig:
    """Logit distillation and HPDM.

    ``python -m fastseg.train --preset study_hpdm --teacher FILE``

    A minute on one core. The score is in ``docs/studies.md``.
    """
    return study("hpdm")


def study_robustseg() -> TrainConfig:
    """Logit distillation, HPDM and RRM.

    ``python -m fastseg.train --preset study_robustseg --teacher FILE``

    One to two minutes on one core. The score is in ``docs/studies.md``.
    """
    return study("robustseg")


def _base(name: str, frames: int) -> TrainConfig:
    """The demo at 64 pixels on that many training frames, without validations in between."""
    config = demo()
    stages = config.stages
    return replace(
        config,
        name=name,
        data=replace(config.data, root=Path(f"data/synthetic-64-{frames}"), size=64),
        synthetic=SyntheticData(train=frames, val=150, size=64),
        stages=two_stages(replace(stages["teacher"], steps=1800), stages["student"]),
        evaluation=EvaluationConfig(every=100_000, pictures=0),
        save_every=100_000,
    )
