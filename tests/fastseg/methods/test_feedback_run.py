"""Training runs of feedback: what moves, and what stays as it is to the last bit."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from fastseg.methods.feedback import Feedback, FeedbackOptions, FeedbackWeights
from fastseg.methods.stage import Stage

TEACHER = Stage(
    trains="teacher", start="random", losses=FeedbackWeights(), steps=2, lr=1e-3, warmup_epochs=0
)
TOGETHER = replace(
    TEACHER,
    trains="student+feedback_teacher",
    start="teacher",
    modalities="drop",
    losses=FeedbackWeights(ohem=1, logit=50, hpdm=1, ifv=12, feedback_ohem=1, feedback_ifv=1),
)
TERMS = {"ohem", "logit", "hpdm", "ifv", "feedback_ohem", "feedback_ifv"}


def run(config, fit, stages, **options):
    options = FeedbackOptions(**options)
    config = replace(config, method=Feedback.name, losses=options, stages=stages)
    path, finished = fit(config)
    assert finished
    return path, {file.stem: load_file(file) for file in path.glob("*.safetensors")}


def moved(before, after):
    """Names of the tensors that are not equal, bit by bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].equal(after[name])}


@pytest.mark.parametrize("policy", ["drop", "zero"])
def test_the_encoder_of_the_feedback_teacher_learns_and_nothing_else(config, fit, losses, policy):
    together = replace(TOGETHER, modalities=policy, steps=3)
    path, networks = run(config, fit, {"teacher": TEACHER, "joint": together})
    assert networks.keys() == {"teacher", "feedback_teacher", "student"}
    assert {name for stage, _, name in losses(path) if stage == "joint"} >= TERMS
    changed = moved(networks["teacher"], networks["feedback_teacher"])
    assert changed == {name for name in networks["teacher"] if name.startswith("encoder.")}
    # of the student only what softmax or BatchNorm cancels may stay
    still = networks["teacher"].keys() - moved(networks["teacher"], networks["student"])
    assert not {name for name in still if name.startswith("encoder.")}


def test_dominant_encoders_do_not_move(config, fit):
    config = replace(config, model=replace(config.model, encoders="per_modality"))
    stages = {"teacher": TEACHER, "joint": replace(TOGETHER, steps=1)}
    _, networks = run(config, fit, stages)
    changed = moved(networks["teacher"], networks["feedback_teacher"])
    names = {name.split(".")[1] for name in networks["teacher"] if name.startswith("encoders.")}
    weak = {name.split(".")[1] for name in changed}
    assert changed == {n for n in networks["teacher"] if n.split(".")[1] in weak}
    assert weak < names
    assert len(weak) == len(names) // 2


def test_the_rate_of_the_feedback_teacher_is_its_own(config, fit):
    """Without warm-up the first step of AdamW has the length of the rate."""
    lengths = []
    for rate in (0.1, 0.2):
        stages = {"teacher": TEACHER, "joint": replace(TOGETHER, steps=1)}
        named = replace(config, name=f"rate{rate}")
        _, networks = run(named, fit, stages, feedback_rate=rate)
        before, after = (
            networks[n]["encoder.norm1.weight"] for n in ("teacher", "feedback_teacher")
        )
        lengths.append((before - after).abs().max().item())
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.02)
    assert lengths[0] == pytest.approx(0.1 * TOGETHER.lr, rel=0.05)


def test_distillation_without_feedback(config, fit, losses):
    student = replace(
        TEACHER, trains="student", learns_from="teacher", start="teacher", modalities="drop",
        losses=FeedbackWeights(ohem=1, logit=50, hpdm=1, ifv=12),
    )  # fmt: skip
    path, networks = run(config, fit, {"teacher": TEACHER, "student": student})
    assert networks.keys() == {"teacher", "student"}
    found = {name for stage, _, name in losses(path) if stage == "student"}
    assert found & TERMS == {"ohem", "logit", "hpdm", "ifv"}
