"""Recipes of the methods: stages, weights, and where each number is from."""

from __future__ import annotations

from dataclasses import replace

from fastseg.config.presets.parts import MethodRecipe, Stages
from fastseg.methods.baseline import BaselineWeights, OhemOptions
from fastseg.methods.full_path import FullPathOptions, FullPathWeights
from fastseg.methods.robustseg import LossOptions, RobustSegWeights
from fastseg.methods.stage import LossWeights, Stage

RRM_WEIGHT = 0.3

_TEACHER = (
    "A teacher on complete inputs, then a student with modality dropout (arXiv:2411.17141) of the "
    "same length, both from ImageNet weights."
)


def two_stages(teacher: Stage, student: Stage) -> Stages:
    """A teacher on complete input, then a student."""
    return {"teacher": teacher, "student": student}


def student_of(teacher: Stage, losses: LossWeights) -> Stage:
    """A stage like the teacher's for a student that learns from it on what dropout leaves."""
    return replace(
        teacher, trains="student", learns_from="teacher", modalities="drop", losses=losses
    )


def robustseg(first: Stage) -> Stages:
    """Both stages of RobustSeg v1."""
    losses = RobustSegWeights(ohem=1, logit=50, hpdm=100, rrm=RRM_WEIGHT)
    return two_stages(first, student_of(first, losses))


def robustseg_in_small(stages: Stages) -> Stages:
    """Weights for a small network and a short training."""
    losses = RobustSegWeights(ohem=1, logit=50, hpdm=1, rrm=0.01)
    return stages | {"student": replace(stages["student"], losses=losses)}


def plain(first: Stage) -> Stages:
    """One network on complete inputs."""
    return {"student": replace(first, trains="student")}


def dropout(first: Stage) -> Stages:
    """One network with modality dropout."""
    return {"student": replace(first, trains="student", modalities="drop")}


def logit_kd(first: Stage) -> Stages:
    """Teacher, then a student with modality dropout that learns from its logits."""
    return two_stages(first, student_of(first, BaselineWeights(logit=50)))


def full_path(first: Stage) -> Stages:
    """One stage; the method drops modalities itself."""
    return {"student": replace(first, trains="student", losses=FullPathWeights())}


RECIPES = (
    MethodRecipe(
        name="robustseg",
        title="RobustSeg v1 (arXiv:2505.12861v1) with HPDM and RRM",
        method="robustseg",
        losses=LossOptions,
        weights=RobustSegWeights,
        stages=robustseg,
        facts=f"{_TEACHER} Logit weight 50 and HPDM weight 100 are those of the released scripts. "
        f"RRM is in the paper form with weight {RRM_WEIGHT}, which the available text does not "
        "state: it is chosen by the size of its gradient, see docs/numbers.md. Without the "
        "regulariser, as in the authors' later versions: ``--stages.student.losses.rrm 0``.",
        published={
            "deliver_b0": "61.92 of the teacher with all modalities; a student's 60.16 / 49.89 "
            "(all modalities / mean of 15 subsets) is quoted without its version"
        },
        small=robustseg_in_small,
        small_options={"rrm_samples": 2},
    ),
    MethodRecipe(
        name="plain",
        title="Cross-entropy on complete inputs",
        method="baseline",
        losses=OhemOptions,
        weights=BaselineWeights,
        stages=plain,
        facts="The baseline without modality dropout and without distillation; it is what other "
        "recipes use as the teacher.",
        published={"deliver_b0": "61.92 with all modalities, 39.36 mean of 15 (mean fusion)"},
    ),
    MethodRecipe(
        name="dropout",
        title="Cross-entropy with modality dropout",
        method="baseline",
        losses=OhemOptions,
        weights=BaselineWeights,
        stages=dropout,
        facts="The fair baseline of every distillation, which the papers' tables leave out. A "
        "subset per batch, as in AnySeg (arXiv:2411.17141); one per sample with "
        "``--stages.student.modalities-per sample``.",
    ),
    MethodRecipe(
        name="logit_kd",
        title="Modality dropout and distillation of logits",
        method="baseline",
        losses=OhemOptions,
        weights=BaselineWeights,
        stages=logit_kd,
        facts=f"{_TEACHER} Weight 50 is that of the released scripts.",
        published={"deliver_b0": "61.34 with all modalities, 46.42 mean of 15 (CE + logit KL)"},
    ),
    MethodRecipe(
        name="full_path",
        title="Full path (a reconstruction of the training of CHARM, arXiv:2508.03060)",
        method="full_path",
        losses=FullPathOptions,
        weights=FullPathWeights,
        stages=full_path,
        small_options={"paths_per_step": 2},
        facts="The full set, a degraded set of each sample and every single modality in each step; "
        "weights of 1 and the length are choices of this reconstruction.",
        published={
            "deliver_b2": "68.43 with all modalities, 54.96 mean of 15 by CHARM itself, whose "
            "module for interaction between modalities is not part of this"
        },
    ),
)
