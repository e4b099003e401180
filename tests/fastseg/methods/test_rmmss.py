"""RMMSS: its stages, the loss of the selection, and a short run of all three stages."""

import csv
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from fastseg import evaluate
from fastseg.config.serialise import read_config
from fastseg.engine.context import RunContext
from fastseg.engine.memory_forecast import count_memory
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.stage_opening import check_models
from fastseg.engine.stage_setup import StageSetup
from fastseg.engine.trainer import Trainer
from fastseg.errors import ConfigError
from fastseg.evaluation.run_report import write_run_report
from fastseg.evaluation.validation import Validation
from fastseg.kernels import reference
from fastseg.methods.base import NewModel, StepInputs, StepPlan
from fastseg.methods.draws import pack
from fastseg.methods.rmmss import Rmmss, RmmssOptions
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.methods.seeds import Share, derive_seed, draw_modalities
from fastseg.methods.stage import Stage
from fastseg.models import SegFormer
from fastseg.report.page import html
from tests.support.toy_backbone import ToySegmenter

CLASSES, NAMES = 5, ("img", "depth", "event", "lidar")
OPTIONS = RmmssOptions()
TEACHER = Stage(trains="teacher", start="random", steps=2, lr=1e-3, warmup_epochs=0)
STUDENT = replace(
    TEACHER, trains="student", learns_from="teacher", modalities="drop",
    losses=RobustSegWeights(logit=50, hpdm=100),
)  # fmt: skip
SELECTED = replace(
    STUDENT, trains="selected", learns_from="teacher+student", start="student",
    losses=RobustSegWeights(logit=50),
)  # fmt: skip
STAGES = {
    "teacher": replace(TEACHER, losses=RobustSegWeights()),
    "student": STUDENT,
    "selected": SELECTED,
}


@pytest.fixture
def rmmss(config):
    """All stages, with two modalities and so three subsets."""
    data = replace(config.data, modalities=("img", "depth"), eval_batch_size=5)
    quick = replace(config.evaluation, every=9, samples=1, pictures=0)
    return replace(
        config, method="rmmss", losses=OPTIONS, stages=STAGES, data=data, evaluation=quick
    )


def networks_of():
    torch.manual_seed(0)
    new = NewModel(partial(SegFormer, "mit_nano", CLASSES, 16, dropout=0, drop_path=0), NAMES)
    method = Rmmss(OPTIONS)
    names = ("teacher", "student", "selected")
    networks = {name: method.build(name, new).double().eval() for name in names}
    method.first_weights(SELECTED, "selected", networks["selected"], networks)
    networks["selected"].train()
    return method, networks


def inputs_of(networks, images, labels, present):
    frozen = {name: networks[name].eval() for name in ("teacher", "student")}
    draws = pack(torch.device("cpu"), {}, modalities=4, present=present)
    return StepInputs(SELECTED, images, labels, draws, {**networks, **frozen})


def data_of(batch=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, batch, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (batch, 32, 32), generator=generator)
    labels[:, :3] = 255
    return images, labels


def enlarged(logits):
    return torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("present", [[2], [0, 3], [0, 1, 2, 3]], ids=str)
def test_the_selection_learns_from_labels_and_from_the_teacher_on_complete_input(present, batch):
    method, networks = networks_of()
    images, labels = data_of(batch)
    terms = method.terms(inputs_of(networks, images, labels, present))
    own = enlarged(networks["selected"](images[present], present).logits)
    with torch.no_grad():
        target = enlarged(networks["teacher"](images).logits)
    kl = (target.softmax(1) * (target.log_softmax(1) - own.log_softmax(1))).sum() / own.numel()
    wanted = {"ohem": reference.ohem_cross_entropy(own, labels), "logit": kl}
    assert list(terms) == list(wanted)
    learns = [p for p in networks["selected"].parameters() if p.requires_grad]
    for name, value in terms.items():
        torch.testing.assert_close(value, wanted[name], check_dtype=False, rtol=1e-5, atol=1e-7)
        found, right = (
            torch.autograd.grad(x, learns, retain_graph=True) for x in (value, wanted[name])
        )
        for one, two in zip(found, right, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-8)


def test_a_batch_without_labels_teaches_the_selection_nothing():
    method, networks = networks_of()
    images, labels = data_of()
    inputs = inputs_of(networks, images, torch.full_like(labels, 255), [0, 2])
    value = method.terms(inputs)["ohem"]
    value.backward()
    grads = [p.grad for p in networks["selected"].parameters() if p.requires_grad]
    assert value == 0
    assert not any(grad.any() for grad in grads)


def test_without_distillation_no_network_is_called_beside_the_selection():
    method, networks = networks_of()
    inputs = inputs_of(networks, *data_of(), [1])
    stage = replace(SELECTED, losses=RobustSegWeights())
    alone = {"selected": networks["selected"]}
    assert list(method.terms(replace(inputs, stage=stage, networks=alone))) == ["ohem"]


def test_its_first_candidates_are_the_finished_networks():
    _, networks = networks_of()
    pair = networks["selected"]
    for name, candidate in (("teacher", pair.full), ("student", pair.robust)):
        wanted = networks[name].state_dict()
        assert all(torch.equal(x, wanted[k]) for k, x in candidate.state_dict().items())


def test_all_modalities_are_left_in_one_of_m_steps():
    steps = 8000
    seeds = (derive_seed(0, 2, step, "modalities") for step in range(steps))
    complete = sum(len(draw_modalities("drop", 4, seed)) == 4 for seed in seeds)
    assert abs(complete / steps - 1 / 4) < 4 * (3 / 16 / steps) ** 0.5


def test_two_processes_draw_what_one_draws():
    """The student's pairings are RobustSeg's; the selection's steps draw nothing of their own."""
    method = Rmmss(OPTIONS)

    def drawn(stage, batch, share):
        seeds = partial(derive_seed, 0, 1, 0)
        return method.draw(StepPlan(stage, 4, [0, 2], batch, share, seeds))

    whole = drawn(STUDENT, 4, Share())["pairing"]
    for rank in range(2):
        share = Share(rank, 2)
        assert torch.equal(drawn(STUDENT, 2, share)["pairing"], whole[share.rows(2)])
        assert drawn(SELECTED, 2, share) == {}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("selected", {"learns_from": "teacher"}, "made of both other networks"),
        ("selected", {"start": "random"}, "made of both other networks"),
        ("selected", {"trains": "selected+student"}, "cannot learn from it|made of both"),
        ("selected", {"losses": RobustSegWeights(hpdm=1)}, "hpdm teaches it nothing"),
        ("student", {"losses": RobustSegWeights(rrm=1)}, "rmmss has no rrm"),
        ("student", {"trains": "student+teacher", "learns_from": "nobody"}, "trains one network"),
    ],
)
def test_stages_that_make_no_sense_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        Rmmss(OPTIONS).check(name, replace(STAGES[name], **change))
    with pytest.raises(ValueError, match="selection_temperature"):
        RmmssOptions(selection_temperature=0)


def test_a_teacher_of_another_backbone_is_refused(rmmss):
    for backbone in ("mit_b0", "mit_nano"):
        model = replace(rmmss.model, backbone="mit_nano", teacher_backbone=backbone)
        stages = {**STAGES, "student": replace(STUDENT, losses=RobustSegWeights(logit=50))}
        context = RunContext(replace(rmmss, model=model, stages=stages))
        if backbone == "mit_nano":
            check_models(context)
            continue
        with pytest.raises(ConfigError, match=r"leave out --model\.teacher-backbone"):
            check_models(context)


def test_a_model_without_parts_is_refused():
    new = NewModel(lambda: ToySegmenter(NAMES, CLASSES, 0.1), NAMES)
    with pytest.raises(ConfigError, match="calls their encoders, fusion and head apart"):
        Rmmss(OPTIONS).build("selected", new)


def test_the_memory_of_a_step_is_counted(rmmss):
    config = replace(rmmss, precision="bf16")
    setup = StageSetup(config, "selected", 2, SELECTED, steps_per_epoch=4)
    forecast = count_memory(RunContext(config), setup)
    assert forecast.networks > 0
    assert forecast.step > 0


def test_a_run_keeps_the_candidates_and_reports_the_selection(rmmss, capsys, monkeypatch):
    """Three stages, scores, shares, cost; the same table from the files on disk."""
    # the charts take longer than all stages
    monkeypatch.setattr(html, "write_figures", lambda *_: None)
    with RunFolder(rmmss) as run:
        context = RunContext(run.config)
        trainer = Trainer(context, run, Validation)
        trainer.fit()
        files = run.network_files()
        networks = {name: context.load_network(path, name) for name, path in files.items()}
        printed = write_run_report(context, networks, trainer.metrics.rows(), run.path)
    scores, selected, costs = printed.split("\n\n")
    assert [line.split()[0] for line in scores.splitlines()[1:]] == [*Rmmss.networks, "gain"]
    assert selected.startswith("Share of elements taken from the teacher")
    assert [line.split()[0] for line in selected.splitlines()[2:]] == ["R", "D", "RD"]
    assert [line.split()[0] for line in costs.splitlines()[2:]] == [*Rmmss.networks]
    held = load_file(files["selected"])
    for name, prefix in (("teacher", "full."), ("student", "robust.")):
        own = load_file(files[name])
        assert all(torch.equal(x, held.pop(prefix + key)) for key, x in own.items())
    assert all(name.startswith(("levels.", "last.")) for name in held)
    seed = derive_seed(rmmss.seed, 2, 0, "weights")
    start = context.new_network(seed, "selected").state_dict()
    assert any(not torch.equal(x, start[name]) for name, x in held.items())

    with (run.path / "details.csv").open() as file:
        rows = list(csv.DictReader(file))
    shares = [row for row in rows if row["table"].startswith("Share")]
    assert len(shares) == 3 * 5
    assert all(0 <= float(row["value"]) <= 100 for row in shares)
    assert any(0 < float(row["value"]) < 100 for row in shares)
    cost = {(row["row"], row["column"]): float(row["value"]) for row in rows if row not in shares}
    assert cost["selected", "parameters"] > 2 * cost["teacher", "parameters"] - 1e-3
    assert cost["selected", "multiply-adds"] > 1.9 * cost["teacher", "multiply-adds"] > 0
    page = (run.path / "report.html").read_text()
    assert "Share of elements taken from the teacher, in percent (selected)" in page
    assert "multiply-adds" in page

    assert read_config(run.config_file) == run.config
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", str(run.path)]) == 0
    assert capsys.readouterr().out.rstrip() == printed
