"""The loss terms of a stage, and training with the kernels against training with definitions."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastseg import kernels
from fastseg.engine.optim.optimizer import guarded_step
from fastseg.kernels import reference
from fastseg.kernels.common import switch
from fastseg.methods.draws import Draws, pack
from fastseg.methods.pairing import draw_pairing
from fastseg.methods.robustseg import LossOptions, RobustSeg, RobustSegWeights, loss_terms
from fastseg.methods.seeds import Share, derive_seed, draw_modalities
from fastseg.methods.stage import Stage
from fastseg.methods.step_draws import draw_step
from fastseg.methods.weighted_sum import weighted_sum
from fastseg.models import SegmenterOutput

CLASSES, SIDE, MODALITIES = 4, 16, 3
EVERY_TERM = RobustSegWeights(ohem=1.0, logit=1.0, hpdm=10.0, rrm=0.1)


class Network(nn.Module):
    """A pyramid of two levels, small enough for Triton's interpreter."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)])
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images):
        x, features = images.flatten(0, 1), []
        for level in self.levels:
            x = level(x).tanh()
            features.append(x.unflatten(0, images.shape[:2]))
        return SegmenterOutput(self.head(features[0].mean(0)), features)


def make_batch(step):
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (1, SIDE // 4, SIDE // 4), generator=generator)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = torch.randn((MODALITIES, 1, 3, SIDE, SIDE), generator=generator)
    images = images + labels[None, :, None] - CLASSES / 2
    labels[:, :2] = 255
    return images, labels.to(torch.uint8)


def make_outputs(present=(0, 1, 2)):
    images, labels = make_batch(0)
    with torch.no_grad():
        teacher = Network(0).eval()(images)
    return Network(1).eval()(images[list(present)]), teacher, labels


def draws_of(present, pairing_seed, noise_seed):
    generator = torch.Generator().manual_seed(pairing_seed)
    pairing = draw_pairing(1, MODALITIES, present, generator)
    return pack(
        torch.device("cpu"), {"pairing": pairing}, modalities=MODALITIES, present=present,
        seed=noise_seed,
    )  # fmt: skip


def losses_of(weights, output, teacher, labels, present=(0, 1, 2), **options):
    terms = loss_terms(
        weights.active(), LossOptions(rrm_samples=2, **options), output, teacher, labels,
        draws_of(present, pairing_seed=3, noise_seed=4),
    )  # fmt: skip
    return {**terms, "loss": weighted_sum(terms, weights.active())}


def test_the_loss_is_the_weighted_sum_of_the_active_terms():
    terms = losses_of(EVERY_TERM, *make_outputs())
    assert set(terms) == {"ohem", "logit", "hpdm", "rrm", "loss"}
    wanted = sum(getattr(EVERY_TERM, name) * x for name, x in terms.items() if name != "loss")
    torch.testing.assert_close(terms["loss"], wanted)
    assert all(x.dtype == torch.float32 and x.ndim == 0 for x in terms.values())
    only = losses_of(RobustSegWeights(ohem=0.0, logit=2.0), *make_outputs())
    assert set(only) == {"logit", "loss"}
    torch.testing.assert_close(only["loss"], 2 * terms["logit"])


def test_each_term_is_its_definition():
    output, teacher, labels = make_outputs()
    terms = losses_of(EVERY_TERM, output, teacher, labels)
    full, target = (
        torch.nn.functional.interpolate(x.logits, size=(SIDE, SIDE), mode="bilinear")
        for x in (output, teacher)
    )
    torch.testing.assert_close(terms["ohem"], reference.ohem_cross_entropy(full, labels))
    torch.testing.assert_close(terms["logit"], reference.logit_distillation(full, target))
    rrm = reference.representation_regularisation(
        output.features, teacher.features, seed=4, samples=2
    )
    torch.testing.assert_close(terms["rrm"], rrm)


def test_dropped_modalities_meet_their_own_teacher_features():
    """A student that equals the teacher has no prototype divergence, whatever it is given."""
    images, labels = make_batch(0)
    network = Network(0).eval()
    with torch.no_grad():
        teacher, output = network(images), network(images[[2, 0]])
    weights = RobustSegWeights(ohem=1.0, hpdm=1.0)
    matched = losses_of(weights, output, teacher, labels, present=(2, 0), hpdm="code")
    crossed = losses_of(weights, output, teacher, labels, present=(0, 2), hpdm="code")
    assert matched["hpdm"] < 1e-7 < crossed["hpdm"]


def test_the_teachers_rows_are_chosen_once_for_all_terms(monkeypatch):
    output, teacher, labels = make_outputs((0, 2))
    draws = replace(draws_of((0, 2), pairing_seed=3, noise_seed=4), replayed=True)
    asked, of = [], Draws.of
    monkeypatch.setattr(Draws, "of", lambda self, x: asked.append(x) or of(self, x))
    loss_terms(EVERY_TERM.active(), LossOptions(hpdm="code"), output, teacher, labels, draws)
    assert len(asked) == len(teacher.features)


def per_sample(**options):
    stage = Stage(
        trains="student", learns_from="teacher", modalities="drop", modalities_per="sample",
        losses=EVERY_TERM,
    )  # fmt: skip
    return RobustSeg(LossOptions(rrm_samples=2, **options)), stage


def test_the_released_form_of_hpdm_needs_one_subset_for_all_samples():
    method, stage = per_sample(hpdm="code")
    with pytest.raises(ValueError, match=r"stage 'student'.*--losses.hpdm paper"):
        method.check("student", stage)
    method.check("student", replace(stage, modalities="zero"))
    per_sample()[0].check("student", stage)


def test_hpdm_of_samples_of_their_own_reaches_what_is_left_of_them():
    method, stage = per_sample()
    draws = draw_step(
        method, stage, lambda purpose: 1, modalities=MODALITIES, batch=4, share=Share(),
        present=[0], sample_ids=(), device=torch.device("cpu"), noise=0, rate=0.0,
    )  # fmt: skip
    images, labels = (torch.cat(parts, dim) for parts, dim in zip(
        zip(*map(make_batch, range(1, 5)), strict=True), (1, 0), strict=True
    ))  # fmt: skip
    with torch.no_grad():
        teacher = Network(0).eval()(images)
    output = Network(1).eval()(images)
    for x in output.features:
        x.retain_grad()
    terms = loss_terms({"hpdm": 1}, method.options, output, teacher, labels, draws)
    terms["hpdm"].backward()
    assert 0 < draws.kept.sum() < draws.kept.numel()
    first, second = (x.grad.flatten(2).abs().amax(2) > 0 for x in output.features)
    assert torch.equal(first, draws.kept.bool())
    # a sample may have one class alone at the coarser level
    assert not (second & ~first).any()
    assert second.any()


def train(steps):
    """Loss terms of every step of a short training of a student, with modalities dropped."""
    teacher, student = Network(0).eval(), Network(1).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-2, fused=True)
    curve = []
    for step in range(steps):
        images, labels = make_batch(step % 4)
        present = draw_modalities("drop", MODALITIES, derive_seed(0, 1, step, "modalities"))
        with torch.no_grad():
            target = teacher(images)
        values = loss_terms(
            EVERY_TERM.active(), LossOptions(rrm_samples=2), student(images[present]), target,
            labels,
            draws_of(present, pairing_seed=step, noise_seed=step),
        )  # fmt: skip
        values["loss"] = weighted_sum(values, EVERY_TERM.active())
        values["loss"].backward()
        guarded_step(optimizer, 1.0)
        curve.append({name: float(value) for name, value in values.items()})
    return curve


@pytest.mark.skipif(not switch.INTERPRET, reason="TRITON_INTERPRET=1 was not set before Triton")
def test_kernels_and_definitions_give_the_same_training(monkeypatch):
    # kernels and definitions draw other noise from the same seed: give both the same
    regulariser = kernels.representation_regularisation

    def with_noise(student, teacher, *, seed, samples, form):
        noise = [
            torch.randn((samples, *x.shape), generator=torch.Generator().manual_seed(seed + i))
            for i, x in enumerate(student)
        ]
        return regulariser(student, teacher, samples=samples, noise=noise, form=form)

    monkeypatch.setattr(kernels, "representation_regularisation", with_noise)
    with kernels.force_reference():
        plain = train(30)
    with kernels.force_kernels():
        fused = train(30)
    assert plain[-1]["ohem"] < 0.7 * plain[0]["ohem"]  # it does learn
    for step, (got, wanted) in enumerate(zip(fused, plain, strict=True)):
        for name, value in wanted.items():
            # rounding differences grow from step to step
            assert got[name] == pytest.approx(value, rel=2e-5 + 5e-4 * step / 30), (step, name)


@pytest.mark.fault("F9")
def test_a_batch_without_any_label_stays_finite_and_teaches_nothing():
    images, labels = make_batch(0)
    with torch.no_grad():
        teacher = Network(0).eval()(images)
    for weights in (RobustSegWeights(ohem=1.0), RobustSegWeights(ohem=0.0, hpdm=10.0), EVERY_TERM):
        network = Network(1)
        terms = losses_of(weights, network(images), teacher, torch.full_like(labels, 255))
        assert all(torch.isfinite(value) for value in terms.values())
        terms["loss"].backward()
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)
        assert terms["ohem" if "ohem" in terms else "hpdm"] == 0
        if weights != EVERY_TERM:  # the logits' distance and the regulariser need no labels
            assert not any(grad.any() for grad in grads)
