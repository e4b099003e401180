"""Baselines: plain, dropout per batch and per sample, and logit distillation."""

import csv
import itertools
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.errors import ConfigError
from fastseg.evaluation.run_report import write_run_report
from fastseg.kernels import reference
from fastseg.methods.base import StepInputs
from fastseg.methods.baseline import Baseline, BaselineWeights, OhemOptions
from fastseg.methods.seeds import Share, derive_seed, draw_modalities, draw_modalities_of_samples
from fastseg.methods.stage import Stage
from fastseg.methods.step_draws import draw_step
from fastseg.models import SegFormer

CLASSES, M, B = 5, 4, 3
STAGE = Stage(
    trains="student", start="random", losses=BaselineWeights(), steps=2, lr=1e-3, warmup_epochs=0
)


def network_of(seed=0):
    torch.manual_seed(seed)
    return SegFormer("mit_nano", CLASSES, 16, dropout=0, drop_path=0).double().eval()


def data_of():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(M, B, 3, 32, 32, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, CLASSES, (B, 32, 32), generator=generator)


def drawn(stage, step=0, batch=B, share=Share()):  # noqa: B008
    method, seeds = Baseline(OhemOptions()), partial(derive_seed, 0, 0, step)
    return draw_step(
        method, stage, seeds, modalities=M, batch=batch, share=share,
        present=method.present(stage, M, seeds), sample_ids=(), device=torch.device("cpu"),
        noise=0, rate=0.0,
    )  # fmt: skip


def inputs_of(stage, images, labels, draws, **networks):
    return StepInputs(stage, images, labels, draws, networks)


def enlarged(logits):
    return functional.interpolate(logits, size=(32, 32), mode="bilinear")


def test_a_start_from_another_architecture_is_refused_before_the_first_step():
    method, stage = Baseline(OhemOptions()), replace(STAGE, start="teacher")
    nano, b0 = SegFormer("mit_nano", CLASSES, 16), SegFormer("mit_b0", CLASSES, 16)
    method.check_models(stage, {"student": nano, "teacher": nano})
    with pytest.raises(ConfigError, match=r"student cannot start from the teacher.*--stages"):
        method.check_models(stage, {"student": nano, "teacher": b0})
    method.check_models(replace(stage, start="random"), {"student": nano, "teacher": b0})


def test_terms_are_their_definitions():
    images, labels = data_of()
    losses = BaselineWeights(ohem=1, logit=50)
    stage = replace(STAGE, learns_from="teacher", losses=losses, modalities="drop")
    draws, student, teacher = drawn(stage, step=3), network_of(0), network_of(1)
    assert 0 < len(draws.present) < M
    inputs = inputs_of(stage, images, labels, draws, student=student, teacher=teacher)
    terms = Baseline(OhemOptions()).terms(inputs)
    own = enlarged(student(images[list(draws.present)]).logits)
    with torch.no_grad():
        target = enlarged(teacher(images).logits)
    assert list(terms) == ["ohem", "logit"]
    kl = (target.softmax(1) * (target.log_softmax(1) - own.log_softmax(1))).sum() / own.numel()
    torch.testing.assert_close(terms["logit"], kl, check_dtype=False)
    torch.testing.assert_close(terms["ohem"], reference.ohem_cross_entropy(own, labels))


def test_without_distillation_the_teacher_is_not_called():
    images, labels = data_of()
    stage = replace(STAGE, learns_from="teacher")
    terms = Baseline(OhemOptions()).terms(
        inputs_of(stage, images, labels, drawn(stage), student=network_of())
    )
    assert list(terms) == ["ohem"]


def test_subsets_of_samples_have_the_distribution_of_subsets_of_batches():
    count = 16_000
    samples = draw_modalities_of_samples(M, count, seed=2)
    found = Counter(tuple(row.nonzero().flatten().tolist()) for row in samples)
    seeds = (derive_seed(0, 0, step, "modalities") for step in range(count))
    batches = Counter(tuple(draw_modalities("drop", M, seed)) for seed in seeds)
    for size in range(1, M + 1):
        subsets = list(itertools.combinations(range(M), size))
        for subset in subsets:
            wanted = 1 / M / len(subsets)
            sigma = (wanted * (1 - wanted) / count) ** 0.5
            assert abs(found[subset] / count - wanted) < 4.5 * sigma
            assert abs(batches[subset] / count - wanted) < 4.5 * sigma


@pytest.mark.parametrize("modalities", ["drop", "zero"])
def test_shares_of_a_step_have_the_subsets_of_one_process(modalities):
    stage = replace(STAGE, modalities=modalities, modalities_per="sample")
    whole = drawn(stage, batch=12).kept
    assert len(set(map(tuple, whole.T.tolist()))) > 1
    for rank, micro in itertools.product(range(2), range(2)):
        share = Share(rank, 2, micro, 2)
        assert torch.equal(drawn(stage, batch=3, share=share).kept, whole[:, share.rows(3)])


def test_dropped_modalities_of_a_sample_carry_no_gradient():
    stage = replace(STAGE, modalities="drop", modalities_per="sample")
    images, labels = data_of()
    draws = drawn(stage)
    assert not draws.kept.all()
    images.requires_grad_()
    network = network_of()
    inputs = inputs_of(stage, images, labels, draws, student=network)
    Baseline(OhemOptions(ohem_threshold=1 - 1e-9)).terms(inputs)["ohem"].backward()
    moved = images.grad.flatten(2).any(2)
    assert torch.equal(moved, draws.kept.bool())
    # and the logits are those of each sample alone with what is left of it
    logits = inputs.output_of("student").logits
    for b in range(B):
        rows = draws.kept[:, b].nonzero().flatten().tolist()
        alone = network(images[rows, b : b + 1]).logits
        torch.testing.assert_close(logits[b : b + 1], alone)


def test_zeroed_modalities_are_zeroed_sample_by_sample():
    stage = replace(STAGE, modalities="zero", modalities_per="sample")
    images, labels = data_of()
    draws = drawn(stage)
    seen = inputs_of(stage, images, labels, draws).seen()
    for m, b in itertools.product(range(M), range(B)):
        wanted = images[m, b] if draws.kept[m, b] else torch.zeros_like(images[m, b])
        assert torch.equal(seen[m, b], wanted)


def test_a_stage_of_two_learners_is_refused():
    with pytest.raises(ValueError, match="'pair': baseline trains one network at a time"):
        Baseline(OhemOptions()).check("pair", replace(STAGE, trains="teacher+student"))


def test_one_network_alone_is_trained_scored_and_reported_without_a_gain(config, fit):
    """Table, results and page have one network; per sample the scores are of whole subsets."""
    stage = replace(STAGE, modalities="drop", modalities_per="sample")
    config = replace(config, method="baseline", losses=OhemOptions(), stages={"student": stage})
    path, finished = fit(config)
    assert finished
    with RunFolder(replace(config, name="again")) as run:
        context = RunContext(run.config)
        network = context.load_network(path / "student.safetensors", "student")
        printed = write_run_report(context, {"student": network}, [], run.path)
        assert [line.split()[0] for line in printed.splitlines()[1:]] == ["student"]
        with (run.path / "results.csv").open() as file:
            rows = [row["model"] for row in csv.DictReader(file)]
        assert rows == ["student"] * 16
        page = (run.path / "report.html").read_text()
    assert ">student</th>" in page
    assert 'class="gain"' not in page


def test_distillation_leaves_the_teacher_as_it_was(config, fit):
    teacher = replace(STAGE, trains="teacher")
    student = replace(
        STAGE, learns_from="teacher", start="teacher", modalities="drop",
        losses=BaselineWeights(logit=50),
    )  # fmt: skip
    config = replace(config, method="baseline", losses=OhemOptions(), stages={})
    alone, _ = fit(replace(config, name="alone", stages={"teacher": teacher}))
    both, _ = fit(replace(config, name="both", stages={"teacher": teacher, "student": student}))
    one, two = (load_file(path / "teacher.safetensors") for path in (alone, both))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = load_file(both / "student.safetensors")
    assert any(not torch.equal(other[name], two[name]) for name in two)
