"""AnySeg: which features meet which, what takes part, and runs of both stages."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from fastseg.methods.anyseg import AnySeg, AnySegOptions, AnySegWeights
from fastseg.methods.base import StepInputs
from fastseg.methods.losses.features import cross_modal_distillation, unimodal_distillation
from fastseg.methods.seeds import Share, derive_seed
from fastseg.methods.stage import Stage
from fastseg.methods.step_draws import draw_step
from fastseg.models import SegFormer

CLASSES, M, B = 5, 4, 2
TEACHER = Stage(
    trains="teacher", start="random", losses=AnySegWeights(), steps=2, lr=1e-3, warmup_epochs=0
)
STUDENT = replace(
    TEACHER, trains="student", learns_from="teacher", modalities="drop",
    losses=AnySegWeights(ohem=1, logit=50, umd=5, cmd=10),
)  # fmt: skip


def network_of(seed):
    torch.manual_seed(seed)
    return SegFormer("mit_nano", CLASSES, 16, dropout=0, drop_path=0).eval()


def step_of(stage, step=1, labels=None):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(M, B, 3, 32, 32, generator=generator)
    labels = (
        torch.randint(0, CLASSES, (B, 32, 32), generator=generator) if labels is None else labels
    )
    method, seeds = AnySeg(AnySegOptions()), partial(derive_seed, 0, 0, step)
    draws = draw_step(
        method, stage, seeds, modalities=M, batch=B, share=Share(),
        present=method.present(stage, M, seeds), sample_ids=(), device=torch.device("cpu"),
        noise=0, rate=0.0,
    )  # fmt: skip
    networks = {"student": network_of(0), "teacher": network_of(1).requires_grad_(False)}
    return StepInputs(stage, images, labels, draws, networks)


def test_the_students_features_meet_those_of_the_same_modalities():
    step = step_of(STUDENT)
    rows = list(step.draws.present)
    assert 1 < len(rows) < M
    options = AnySegOptions(umd_axis="height", cmd="code")
    terms = AnySeg(options).terms(step)
    assert list(terms) == ["ohem", "logit", "umd", "cmd"]
    assert all(x.dtype == torch.float32 and x.ndim == 0 for x in terms.values())
    own = step.networks["student"](step.images[rows]).features
    taught = [x[rows] for x in step.networks["teacher"](step.images).features]
    torch.testing.assert_close(terms["umd"], unimodal_distillation(own, taught, "height"))
    torch.testing.assert_close(terms["cmd"], cross_modal_distillation(own, taught, "code"))
    # a student that is its teacher has nothing to learn from features
    same = replace(step, networks={**step.networks, "student": step.networks["teacher"]})
    terms = AnySeg(AnySegOptions()).terms(same)
    assert max(terms["umd"], terms["cmd"]) < 1e-9


@pytest.mark.parametrize("change", [{"modalities": "zero"}, {"modalities_per": "sample"}])
def test_what_is_left_out_takes_no_part(change):
    step = step_of(replace(STUDENT, **change))
    marks = step.draws.kept.expand(M, B)
    assert 0 < marks.sum() < M * B
    terms = AnySeg(AnySegOptions()).terms(step)
    own = step.networks["student"](step.seen()).features
    taught = step.networks["teacher"](step.images).features
    wanted = unimodal_distillation(own, taught, marks=marks)
    torch.testing.assert_close(terms["umd"], wanted)
    assert wanted < unimodal_distillation(own, taught)
    wanted = cross_modal_distillation(own, taught, marks=marks)
    torch.testing.assert_close(terms["cmd"], wanted)


def test_without_labels_the_features_still_teach():
    ignored = torch.full((B, 32, 32), 255)
    step = step_of(STUDENT, labels=ignored)
    terms = AnySeg(AnySegOptions()).terms(step)
    assert terms["ohem"] == 0
    sum(terms.values()).backward()
    grads = [p.grad for p in step.networks["student"].encoder.parameters()]
    assert all(grad.isfinite().all() for grad in grads)
    assert any(grad.any() for grad in grads)


def test_several_networks_at_once_are_refused():
    with pytest.raises(ValueError, match=r"'both': anyseg trains one network"):
        AnySeg(AnySegOptions()).check("both", replace(TEACHER, trains="a+b"))


@pytest.mark.parametrize(
    ("change", "options"),
    [({}, {}), ({"modalities_per": "sample"}, {"umd_axis": "map", "cmd": "code"})],
)
def test_both_stages_train(config, fit, losses, change, options):
    stages = {"teacher": TEACHER, "student": replace(STUDENT, **change)}
    config = replace(
        config, method=AnySeg.name, losses=AnySegOptions(**options), stages=stages, name="both"
    )
    path, finished = fit(config)
    assert finished
    assert {n for stage, _, n in losses(path) if stage == "student"} >= {"umd", "cmd", "logit"}
    alone, _ = fit(replace(config, name="alone", stages={"teacher": TEACHER}))
    one, two = (load_file(x / "teacher.safetensors") for x in (path, alone))
    assert all(torch.equal(one[name], two[name]) for name in one)
