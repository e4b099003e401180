"""Recipes of the methods: stages, weights, and where each number is from."""

from __future__ import annotations

from dataclasses import replace

from fastseg.config.presets.parts import MethodRecipe, Stages
from fastseg.methods.any2seg import Any2SegOptions, Any2SegWeights
from fastseg.methods.anyseg import AnySegOptions, AnySegWeights
from fastseg.methods.baseline import BaselineWeights, OhemOptions
from fastseg.methods.feedback import FeedbackOptions, FeedbackWeights
from fastseg.methods.full_path import FullPathOptions, FullPathWeights
from fastseg.methods.rmmss import RmmssOptions
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


def rmmss(first: Stage) -> Stages:
    """Teacher, robust student, and the selection between both."""
    student = student_of(first, RobustSegWeights(ohem=1, logit=50, hpdm=100))
    selected = replace(
        student,
        trains="selected",
        learns_from="teacher+student",
        start="student",
        losses=RobustSegWeights(ohem=1, logit=50),
        epochs=0.1 * first.epochs,
        warmup_epochs=1,
    )
    return {"teacher": first, "student": student, "selected": selected}


def rmmss_in_small(stages: Stages) -> Stages:
    """Weights for a small network; a short last stage, as the selection has few parameters."""
    student = replace(
        stages["student"], losses=RobustSegWeights(ohem=1, logit=50, hpdm=1), epochs=14
    )
    selected = replace(stages["selected"], epochs=2, lr=6e-3, start="student", warmup_epochs=0.2)
    return stages | {"student": student, "selected": selected}


def feedback(first: Stage) -> Stages:
    """A teacher, then student and feedback teacher together."""
    losses = FeedbackWeights(ohem=1, logit=50, hpdm=100, ifv=12, feedback_ohem=1, feedback_ifv=1)
    joint = replace(
        first,
        trains="student+feedback_teacher",
        start="teacher",
        modalities="drop",
        losses=losses,
        epochs=0.6 * first.epochs,
    )
    return {"teacher": first, "joint": joint}


def feedback_in_small(stages: Stages) -> Stages:
    """Weights for a small network and a short training."""
    losses = FeedbackWeights(ohem=1, logit=50, hpdm=1, ifv=1, feedback_ohem=1, feedback_ifv=1)
    return stages | {"joint": replace(stages["joint"], losses=losses)}


def plain(first: Stage) -> Stages:
    """One network on complete inputs."""
    return {"student": replace(first, trains="student")}


def dropout(first: Stage) -> Stages:
    """One network with modality dropout."""
    return {"student": replace(first, trains="student", modalities="drop")}


def logit_kd(first: Stage) -> Stages:
    """Teacher, then a student with modality dropout that learns from its logits."""
    return two_stages(first, student_of(first, BaselineWeights(logit=50)))


def anyseg(first: Stage) -> Stages:
    """Both stages of AnySeg."""
    losses = AnySegWeights(ohem=1, logit=50, umd=5, cmd=10)
    return two_stages(first, student_of(first, losses))


def any2seg(first: Stage) -> Stages:
    """One network with modality dropout, guided by a vision-language model."""
    losses = Any2SegWeights(ohem=1, inter=1, intra=1)
    return {"student": replace(first, trains="student", modalities="drop", losses=losses)}


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
        name="rmmss",
        title="RMMSS (arXiv:2505.12861v2) with its feature selection",
        method="rmmss",
        losses=RmmssOptions,
        weights=RobustSegWeights,
        stages=rmmss,
        facts=f"{_TEACHER} Then both are frozen and the selection learns. Weights 50 and 100 of "
        "the student are those of the released scripts; loss, rate and length of the last stage "
        "are not published: cross-entropy, logit 50 and a tenth of the epochs are ours.",
        published={
            "deliver_b0": "60.16 with all modalities, 49.89 mean of 15, quoted without its version"
        },
        small=rmmss_in_small,
        small_options={"rrm_samples": 2},
    ),
    MethodRecipe(
        name="feedback",
        title="RobustSeg, CVPR 2026, with dominant-modality distillation and feedback",
        method="feedback",
        losses=FeedbackOptions,
        weights=FeedbackWeights,
        stages=feedback,
        facts="A teacher on complete inputs, 200 epochs on DELIVER, then two copies of it together "
        "for 120: the student with logit 50, prototypes 100 and feature variation 12, the "
        "feedback teacher at 0.1 times the rate. Weights and lengths are those of the paper; the "
        "weight 1 of the feedback's variation is ours.",
        published={
            "deliver_b0": "61.85 with all modalities, 49.91 mean of 15",
            "deliver_b2": "45.16, mean of EMM, RMM and NM",
            "muses_b2": "32.58, mean of EMM, RMM and NM",
            "mcubes_b2": "29.19, mean of EMM, RMM and NM",
        },
        small=feedback_in_small,
    ),
    MethodRecipe(
        name="anyseg",
        title="AnySeg (arXiv:2411.17141) with logit, unimodal and cross-modal distillation",
        method="anyseg",
        losses=AnySegOptions,
        weights=AnySegWeights,
        stages=anyseg,
        facts=f"{_TEACHER} Weights 50 and 5 are the best of the paper's ablations, and 50, 5 and "
        "10 stand in the names of the authors' folders.",
        published={
            "deliver_b0": "60.26 with all modalities, 46.64 mean of 15",
            "muses_b0": "51.14 with all modalities, 40.23 mean of 7",
        },
    ),
    MethodRecipe(
        name="any2seg",
        title="Any2Seg (a reconstruction of arXiv:2407.11351, not public in full)",
        method="any2seg",
        losses=Any2SegOptions,
        weights=Any2SegWeights,
        stages=any2seg,
        facts="Needs the folder of a CLIP model, ``--losses.vision-language DIR``. Weights, "
        "temperature, schedule and sentences are choices of this reconstruction.",
        published={
            "deliver_b2": "68.25 with all modalities, 45.04 mean of 15 by Any2Seg itself",
            "muses_b0": "50.00 with all modalities, 33.86 mean of 7 by Any2Seg itself",
        },
        fusion="mff",
        studied=False,
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
        published={
            "deliver_b0": "61.92 with all modalities, 39.36 mean of 15 (mean fusion)",
            "deliver_cmnext_b2": "66.30 with all modalities on val, of CMNeXt itself",
        },
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
        teacher_losses=FullPathWeights(ohem=0, full=1, paths=0),
        facts="The full set, a degraded set of each sample and every single modality in each step; "
        "weights of 1 and the length are choices of this reconstruction.",
        published={
            "deliver_b2": "68.43 with all modalities, 54.96 mean of 15 by CHARM itself, whose "
            "module for interaction between modalities is not part of this"
        },
    ),
)
