"""The reconstruction of Any2Seg: its terms against loops, its embeddings, and a run of it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fastseg import evaluate
from fastseg.engine.context import RunContext
from fastseg.engine.memory_forecast import count_memory
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.stage_setup import StageSetup
from fastseg.errors import ConfigError
from fastseg.methods.any2seg import Any2Seg, Any2SegOptions, Any2SegWeights, Projection
from fastseg.methods.base import NewModel, StepInputs, StepPlan
from fastseg.methods.draws import pack
from fastseg.methods.losses.language import inter_modal, intra_modal
from fastseg.methods.seeds import Share
from fastseg.methods.stage import Stage
from fastseg.models import SegFormer, SegmenterOutput
from fastseg.models.interface import OutputWithExtras
from fastseg.vision_language.table import EmbeddingTable
from tests.support.tiny_clip import DIM, write_clip

M, B, D = 3, 2, 6
MARKS = torch.tensor([[1, 0], [1, 1], [0, 0]])
STUDENT = Stage(
    trains="student", start="random", modalities="drop", steps=3, lr=1e-3, warmup_epochs=0,
    losses=Any2SegWeights(inter=1, intra=1),
)  # fmt: skip
TEACHER = replace(STUDENT, trains="teacher", modalities="full", losses=Any2SegWeights())


def unit(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def kl(other, own):
    p, q = own.softmax(0), other.softmax(0)
    return (q * (q.log() - p.log())).sum()


def defined_inter(e, v, tau, marks):
    total = 0.0 * e.sum()
    for b in range(e.shape[1]):
        kept = [m for m in range(len(e)) if marks[m, b]]
        for m in kept:
            own = torch.stack([e[m, b] @ e[n, b] for n in kept]) / tau
            other = torch.stack([v[m, b] @ v[n, b] for n in kept]) / tau
            total = total + kl(other, own)
    return total / e.shape[1]


def defined_intra(e, v, t, tau, marks):
    total = 0.0 * e.sum()
    for b in range(e.shape[1]):
        kept = [m for m in range(len(e)) if marks[m, b]]
        for m in kept:
            own = torch.stack([e[m, b] @ sentence for sentence in t]) / tau
            other = torch.stack([v[m, b] @ sentence for sentence in t]) / tau
            total = total + kl(other, own) / len(kept)
    return total / e.shape[1]


@pytest.mark.parametrize("marks", [None, MARKS])
def test_values_and_gradients_are_those_of_the_definitions(marks):
    v, t = unit(M, B, D, seed=1), unit(B, D, seed=2)
    everywhere = torch.ones(M, B) if marks is None else marks
    pairs = [
        (
            lambda e: inter_modal(e, v.float(), 0.3, marks),
            lambda e: defined_inter(e, v, 0.3, everywhere),
        ),
        (
            lambda e: intra_modal(e, v.float(), t.float(), 0.3, marks),
            lambda e: defined_intra(e, v, t, 0.3, everywhere),
        ),
    ]
    for found, wanted in pairs:
        x = unit(M, B, D, seed=0).requires_grad_()
        y = x.detach().float().requires_grad_()
        value, right = found(y), wanted(x)
        assert value.dtype == torch.float32
        assert right > 1e-3
        assert value.item() == pytest.approx(right.item(), rel=1e-4)
        (slope,), (rightly,) = torch.autograd.grad(value, y), torch.autograd.grad(right, x)
        torch.testing.assert_close(slope.double(), rightly, rtol=1e-4, atol=1e-6)
        if marks is not None:
            assert not slope[marks == 0].any()


def test_what_is_alone_teaches_nothing_and_equal_embeddings_are_at_the_minimum():
    e, v, t = (unit(*shape, seed=s).float() for s, shape in enumerate([(1, 1, D)] * 2 + [(1, D)]))
    e.requires_grad_()
    for value in (inter_modal(e, v), intra_modal(e, v, t)):
        assert value == 0
        assert not torch.autograd.grad(value, e)[0].any()
    v, t = unit(M, B, D, seed=1).float(), unit(B, D, seed=2).float()
    assert inter_modal(v, v) == 0
    assert intra_modal(v, v, t) == 0


def prepared():
    """The method with embeddings of three samples."""
    method = Any2Seg(Any2SegOptions(embed_dim=D))
    rows = {"c": 0, "a": 1, "b": 2}
    table = EmbeddingTable(
        unit(3, M, D, seed=3).float(), unit(3, D, seed=4).float(), torch.empty(0, D), rows
    )
    method._rows, method._visual, method._text = table, table.visual, table.text
    return method


def test_each_sample_meets_its_own_embeddings_of_the_modalities_that_are_left():
    method, present = prepared(), [0, 2]
    seeds = lambda purpose: 0  # noqa: E731
    plans = [
        StepPlan(STUDENT, M, present, 2, Share(), seeds, sample_ids=("b", "c")),
        StepPlan(STUDENT, M, present, 1, Share(1, 2), seeds, sample_ids=("c",)),
        StepPlan(STUDENT, M, present, 2, Share(), seeds),
    ]
    assert [method.draw(plan)["rows"].tolist() for plan in plans] == [[2, 0], [0], [0, 0]]
    own = unit(2, B, D, seed=5).float()
    labels = torch.full((B, 8, 8), 255)

    def network(images, present):
        return OutputWithExtras(torch.zeros(B, 4, 8, 8), [], {"language": own})

    draws = pack(torch.device("cpu"), method.draw(plans[0]), modalities=M, present=present)
    step = StepInputs(
        STUDENT, torch.zeros(M, B, 3, 32, 32), labels, draws, {"student": network}
    )  # fmt: skip
    terms = method.terms(step)
    assert list(terms) == ["ohem", "inter", "intra"]
    assert terms["ohem"] == 0
    visual = torch.stack([method._visual[[2, 0], m] for m in present])
    torch.testing.assert_close(terms["inter"], inter_modal(own, visual))
    text = method._text[[2, 0]]
    torch.testing.assert_close(terms["intra"], intra_modal(own, visual, text))


def test_modalities_that_are_left_out_of_a_sample_take_no_part():
    method, own = prepared(), unit(M, B, D, seed=5).float()
    rows = {"rows": torch.tensor([1, 0])}
    draws = pack(torch.device("cpu"), rows, modalities=M, present=[0, 1, 2], kept=MARKS)
    output = OutputWithExtras(torch.zeros(B, 4, 8, 8), [], {"language": own})
    step = StepInputs(
        replace(STUDENT, modalities_per="sample"), torch.zeros(M, B, 3, 32, 32),
        torch.zeros(B, 8, 8, dtype=torch.int64), draws, {"student": lambda *a, fused: output},
    )  # fmt: skip
    terms, visual = method.terms(step), method._visual[[1, 0]].transpose(0, 1)
    torch.testing.assert_close(terms["inter"], inter_modal(own, visual, marks=MARKS))
    text = method._text[[1, 0]]
    torch.testing.assert_close(terms["intra"], intra_modal(own, visual, text, marks=MARKS))


def test_a_sample_without_embeddings_is_refused():
    plan = StepPlan(STUDENT, M, [0], 1, Share(), lambda purpose: 0, sample_ids=("d",))
    with pytest.raises(ValueError, match="no embedding of d"):
        prepared().draw(plan)


def test_the_projection_gives_unit_vectors_of_the_mean_over_pixels():
    torch.manual_seed(0)
    layer, features = Projection(8, D), torch.randn(M, B, 8, 4, 2)
    found = layer(SegmenterOutput(torch.empty(0), [features]))
    wanted = features.mean((3, 4)) @ layer.weight.T
    torch.testing.assert_close(found, wanted / wanted.norm(dim=-1, keepdim=True))
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(SegmenterOutput(torch.empty(0), [features.bfloat16()]))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found, rtol=0, atol=0.02)


def test_a_student_starts_from_a_teacher_that_has_no_projection():
    torch.manual_seed(0)
    new = NewModel(lambda: SegFormer("mit_nano", 5, 16), ("img", "depth", "lidar"))
    method = Any2Seg(Any2SegOptions(embed_dim=D))
    teacher, student = (method.build(name, new) for name in ("teacher", "student"))
    first = student.companions["language"].weight.clone()
    method.first_weights(
        replace(STUDENT, start="teacher"), "student", student, {"teacher": teacher}
    )
    assert torch.equal(student.companions["language"].weight, first)
    assert all(torch.equal(student.state_dict()[k], x) for k, x in teacher.state_dict().items())


@pytest.mark.parametrize(
    "stage", [replace(TEACHER, losses=STUDENT.losses), replace(STUDENT, losses=Any2SegWeights())]
)
def test_only_the_student_is_guided(stage):
    with pytest.raises(ValueError, match="'s': any2seg guides the student and no other network"):
        Any2Seg(Any2SegOptions()).check("s", stage)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture
def guided(config, clip):
    """A teacher and a guided student with the fusion MFF."""
    weights = replace(STUDENT.losses, logit=1)
    stages = {
        "teacher": TEACHER,
        "student": replace(STUDENT, learns_from="teacher", start="teacher", losses=weights),
    }
    options = Any2SegOptions(vision_language=clip, embed_dim=DIM)
    model = replace(config.model, fusion="mff")
    return replace(config, method=Any2Seg.name, losses=options, stages=stages, model=model)


def test_both_stages_train_and_are_scored_without_the_model(guided, fit, losses, capsys):
    path, finished = fit(guided)
    assert finished
    terms = {n for stage, _, n in losses(path) if stage == "student"}
    assert terms >= {"ohem", "logit", "inter", "intra"}
    assert len(list((path / "embeddings").glob("*.safetensors"))) == 1
    files = [load_file(path / f"{name}.safetensors") for name in ("teacher", "student")]
    extra = {"companions.language.weight"}
    assert set(files[1]) - set(files[0]) == extra
    moved = replace(guided.losses, vision_language=path / "gone")
    text = (path / "config.json").read_text()
    folder = str(guided.losses.vision_language)
    assert folder in text
    (path / "config.json").write_text(text.replace(folder, str(moved.vision_language)))
    assert evaluate.main(["--checkpoint", str(path)]) == 0
    assert "student" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_language": None}, "name the folder of one with --losses.vision-language"),
        ({"embed_dim": DIM + 1}, f"set --losses.embed-dim {DIM}"),
    ],
)
def test_a_run_without_a_fitting_model_ends_before_the_first_stage(guided, fit, change, message):
    config = replace(guided, losses=replace(guided.losses, **change))
    with pytest.raises(ConfigError, match=message):
        fit(config)
    assert not list((config.out / config.name).glob("*.safetensors"))


def test_a_forecast_reads_and_writes_nothing(guided):
    config = replace(guided, losses=replace(guided.losses, vision_language=None))
    with RunFolder(config) as run:
        context = RunContext(run.config)
        setup = StageSetup(run.config, "student", 1, config.stages["student"], 1)
        assert count_memory(context, setup).step > 0
        assert not (run.path / "embeddings").exists()
