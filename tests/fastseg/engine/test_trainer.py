import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fastseg.checkpoint.weights import read_identity, save_weights
from fastseg.engine import trainer as trainer_module
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.step import TrainStep
from fastseg.engine.trainer import Trainer
from fastseg.errors import CheckpointError, ConfigError
from fastseg.evaluation import validation as validation_module
from fastseg.evaluation.validation import Validation
from fastseg.methods import base, robustseg
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.methods.seeds import derive_seed, draw_modalities
from fastseg.pipelines import CorruptionConfig, DataError

NETWORKS = ("teacher", "student")


def weights(path):
    return {name: load_file(path / f"{name}.safetensors") for name in NETWORKS}


def differing(left, right):
    """Names of the tensors that are not equal to the last bit."""
    return [
        f"{name}.{key}"
        for name in NETWORKS
        for key in left[name]
        if not torch.equal(left[name][key], right[name][key])
    ]


@pytest.fixture
def whole(config, fit):
    path, finished = fit(replace(config, name="whole"))
    assert finished
    return path


def test_same_seed_same_losses_to_the_last_bit(config, fit, losses, whole):
    again, _ = fit(replace(config, name="again"))
    assert losses(again) == losses(whole)
    assert differing(weights(again), weights(whole)) == []
    other, _ = fit(replace(config, name="other", seed=1))
    assert losses(other) != losses(whole)


@pytest.mark.parametrize(("stop_after", "beside"), [(1, "off"), (3, "on")])
def test_interrupted_and_resumed_is_bitwise_the_same(
    config, fit, losses, whole, stop_after, beside
):
    config = replace(config, name="parts", stop_after=stop_after, save_async=beside)
    sessions, finished = 0, False
    while not finished:
        path, finished = fit(config)
        sessions += 1
    assert sessions > 2
    assert losses(path) == losses(whole)
    assert differing(weights(path), weights(whole)) == []
    assert not (path / "checkpoints").exists()


def rows_of(path):
    """The rows of a run without what depends on time or memory."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    timed = {"images_per_s", "data_wait", "peak_mib"}
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_a_row_of_a_resumed_run_has_the_steps_before_it(config, fit):
    config = replace(config, log_every=3)
    whole, _ = fit(replace(config, name="whole"))
    parts = replace(config, name="parts", stop_after=2)
    while not fit(parts)[1]:
        pass
    assert rows_of(config.out / "parts") == rows_of(whole)


def test_a_state_without_the_sums_of_a_row_still_loads(config, fit, whole):
    parts = replace(config, name="parts", stop_after=2, log_every=3)
    path, _ = fit(parts)
    (state,) = path.glob("checkpoints/*/state.json")
    values = json.loads(state.read_text())
    for name in ("meter", "values", "modalities"):
        del values[name]
    state.write_text(json.dumps(values))
    manifest = json.loads((state.parent / "MANIFEST.json").read_text())
    manifest["state.json"] = hashlib.sha256(state.read_bytes()).hexdigest()
    (state.parent / "MANIFEST.json").write_text(json.dumps(manifest))
    assert fit(replace(parts, stop_after=0))[1]
    assert differing(weights(path), weights(whole)) == []


@pytest.mark.parametrize("at", [1, 2], ids=["within the stage", "at its end"])
def test_a_fault_in_a_validation_loses_no_step(config, fit, whole, monkeypatch, at):
    config = replace(config, name="parts", save_every=1000)
    evaluation = replace(config.evaluation, every=3)
    config = replace(config, evaluation=evaluation)
    real, calls = validation_module.evaluate_subsets, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise DataError("a file is gone")
        return real(*arguments)

    monkeypatch.setattr(validation_module, "evaluate_subsets", failing)
    with pytest.raises(DataError, match="a file is gone"):
        fit(config)
    monkeypatch.setattr(TrainStep, "__call__", counted := Counted(TrainStep.__call__))
    path, finished = fit(config)
    assert finished
    assert len(counted.steps) == 10 - (3, 5)[at - 1]
    assert differing(weights(path), weights(whole)) == []
    scored = [(r["stage"], r["step"]) for r in rows_of(path) if r["kind"] == "eval"]
    assert scored == [(n, step) for n in NETWORKS for step in (3, 3, 5, 5)]


class Counted:
    """A step function that counts its calls."""

    def __init__(self, real):
        self.real, self.steps = real, []

    def __get__(self, train, _):
        def step(number, *batches):
            self.steps.append(number)
            return self.real(train, number, *batches)

        return step


def test_finished_run_trains_nothing_more(config, fit, whole, monkeypatch):
    def forbidden(*_):
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr(TrainStep, "__call__", forbidden)
    before = weights(whole)
    assert fit(replace(config, name="whole")) == (whole, True)
    assert differing(weights(whole), before) == []


def test_weights_know_what_they_belong_to(config, whole):
    identity, facts = read_identity(whole / "student.safetensors")
    assert identity.network == "student"
    assert identity.dataset == "deliver"
    assert identity.modalities == ("img", "depth", "event", "lidar")
    assert len(identity.classes) == 25
    # of a data set of the catalogue there is nothing to describe
    assert facts == {"stage": "student", "steps": 5, "seed": 0, "size": 64, "description": {}}


def test_student_starts_as_the_teacher_and_leaves_it_alone(config, fit, whole):
    context = RunContext(config)
    with RunFolder(replace(config, name="whole")) as run:
        trainer = Trainer(context, run, Validation)
        session = trainer.open_session(trainer.set_up("student"))
        teacher = load_file(whole / "teacher.safetensors")
        for key, value in session.networks.main.state_dict().items():
            assert torch.equal(value, teacher[key]), key
        frozen = {
            k: v.clone() for k, v in session.step_fn.networks.frozen["teacher"].state_dict().items()
        }
        batch = next(trainer.loader.batches(0))
        for step in range(2):
            session.step_fn(step, batch)
        assert all(
            torch.equal(frozen[k], v)
            for k, v in session.step_fn.networks.frozen["teacher"].state_dict().items()
        )
        assert not all(
            torch.equal(teacher[k], v) for k, v in session.networks.main.state_dict().items()
        )
        assert all(p.grad is None for p in session.step_fn.networks.frozen["teacher"].parameters())


@pytest.mark.parametrize("policy", ["full", "drop", "zero"])
def test_what_the_student_sees(config, whole, policy, monkeypatch):
    stage = replace(config.stages["student"], modalities=policy)
    seen, taught = [], []
    monkeypatch.setattr(base, "draw_modalities", lambda *_: [1, 3])
    if policy == "full":
        monkeypatch.undo()
    with RunFolder(replace(config, name="whole")) as run:
        trainer = Trainer(RunContext(config), run, Validation)
        session = trainer.open_session(replace(trainer.set_up("student"), stage=stage))
        session.networks.main.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        session.step_fn.networks.frozen["teacher"].register_forward_pre_hook(
            lambda _, args: taught.append(args[0])
        )
        batch = next(trainer.loader.batches(0))
        values = session.step_fn(0, batch)
    assert torch.equal(taught[0], batch.images)
    expected = {
        "full": batch.images,
        "drop": batch.images[[1, 3]],
        "zero": batch.images * torch.tensor([0.0, 1, 0, 1]).view(4, 1, 1, 1, 1),
    }
    assert torch.equal(seen[0], expected[policy])
    assert set(values) == {"ohem", "logit", "hpdm", "rrm", "loss", "grad_norm", "skipped"}
    assert all(value.isfinite() for value in values.values())


def test_loss_is_the_weighted_sum(config, fit, losses, whole):
    rows = losses(whole)
    terms = config.stages["student"].losses.active()
    for step in range(1, 6):
        total = sum(w * float.fromhex(rows["student", step, t]) for t, w in terms.items())
        assert float.fromhex(rows["student", step, "loss"]) == pytest.approx(total, rel=1e-5)


def test_the_log_counts_modalities_and_memory(config, whole):
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    assert all(10 < row["peak_mib"] < 100_000 for row in rows)
    drawn = {}
    for index, (name, stage) in enumerate(config.stages.items()):
        last = max(row["step"] for row in rows if row["stage"] == name)
        subsets = [
            draw_modalities(stage.modalities, 4, derive_seed(config.seed, index, s, "modalities"))
            for s in range(last)
        ]
        drawn[name] = [sum(m in subset for subset in subsets) for m in range(4)]
        counts = [row["modality_steps"] for row in rows if row["stage"] == name]
        assert list(counts[0]) == ["img", "depth", "event", "lidar"]
        assert [sum(c[m] for c in counts) for m in counts[0]] == drawn[name]
    assert len(set(drawn["teacher"])) == 1
    assert drawn["student"] != drawn["teacher"]


def test_a_teacher_file_replaces_the_first_stage(config, fit, losses, whole):
    config = replace(config, name="given", teacher=whole / "teacher.safetensors")
    path, _ = fit(config)
    assert not (path / "teacher.safetensors").exists()
    assert {key[0] for key in losses(path)} == {"student"}
    student = {k: v for k, v in losses(whole).items() if k[0] == "student"}
    assert losses(path) == student


def test_a_student_is_not_continued_with_another_teacher(config, fit, whole):
    config = replace(config, name="given", teacher=config.out / "teacher.safetensors")
    shutil.copy(whole / "teacher.safetensors", config.teacher)
    fit(replace(config, stop_after=2))
    identity, facts = read_identity(config.teacher)
    network = RunContext(config).load_network(config.teacher)
    network.state_dict()["decoder.linear_pred.bias"][0] += 1
    save_weights(config.teacher, network, identity, facts)
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors is not the teacher that"):
        fit(config)
    shutil.copy(whole / "teacher.safetensors", config.teacher)
    path, finished = fit(config)
    assert finished
    assert (
        differing(
            weights(whole),
            {"teacher": load_file(config.teacher)}
            | {"student": load_file(path / "student.safetensors")},
        )
        == []
    )


@pytest.mark.fault("F41")
def test_a_student_is_no_teacher(config, fit, whole):
    given = replace(config, name="given", teacher=whole / "student.safetensors")
    with pytest.raises(CheckpointError, match="network: student in the file, teacher wanted") as e:
        fit(given)
    assert "--teacher: give the teacher.safetensors" in str(e.value)
    assert "the same command without --teacher trains a teacher first" in str(e.value)
    assert not (config.out / "given" / "metrics.jsonl").exists()
    path, finished = fit(replace(given, teacher=None))  # which it does, in the same folder
    assert finished
    assert differing(weights(path), weights(whole)) == []


def test_states_that_outlive_their_stage_are_removed_at_the_end(config, fit, whole):
    (whole / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert fit(replace(config, name="whole")) == (whole, True)
    assert not (whole / "checkpoints").exists()


def test_a_teacher_of_another_model_is_refused(config, fit, whole):
    model = replace(config.model, embed_dim=32)
    teacher = whole / "teacher.safetensors"
    with pytest.raises(CheckpointError, match="embed_dim: 64 in the file, 32 wanted"):
        fit(replace(config, name="given", teacher=teacher, model=model))


@pytest.mark.fault("F41")
def test_a_missing_teacher_is_refused_before_training(config, fit, tmp_path):
    with pytest.raises(CheckpointError, match="no weights at"):
        fit(replace(config, name="given", teacher=tmp_path / "none.safetensors"))


def test_bf16_trains_close_to_fp32(config, fit, losses, whole):
    path, _ = fit(replace(config, name="bf16", precision="bf16"))
    rough, exact = losses(path), losses(whole)
    assert rough != exact
    for key, value in exact.items():
        if key[2] == "loss" and key[0] == "teacher":
            assert float.fromhex(rough[key]) == pytest.approx(float.fromhex(value), rel=0.05)


def test_a_skipped_step_leaves_weights_and_statistics_alone(config):
    with RunFolder(config) as run:
        trainer = Trainer(RunContext(config), run, Validation)
        session = trainer.open_session(trainer.set_up("teacher"))
        batch = next(trainer.loader.batches(0))
        session.step_fn(0, batch)
        before = {k: v.clone() for k, v in session.networks.main.state_dict().items()}
        batch.images[0, 0, 0, 0, 0] = torch.nan
        values = session.step_fn(1, batch)
    assert values["skipped"] == 1
    after = session.networks.main.state_dict()
    assert [k for k, v in before.items() if not torch.equal(v, after[k])] == []


@pytest.fixture
def poison(monkeypatch):
    """Make a loss term of every step from number ``first`` on not finite."""

    def start(term, first=0):
        real, calls = robustseg.loss_terms, []

        def poisoned(*args, **kwargs):
            values = real(*args, **kwargs)
            calls.append(term)
            factor = torch.nan if len(calls) > first else 1.0
            return values | {term: values[term] * factor}

        monkeypatch.setattr(robustseg, "loss_terms", poisoned)

    return start


def test_persistent_non_finite_gradients_stop_the_run(config, fit, poison, capsys):
    """At the step that reaches the limit, whenever the next row is due."""
    poison("ohem")
    with pytest.raises(ConfigError) as error:
        fit(replace(config, max_skipped=3, log_every=100))
    text = str(error.value)
    assert "the gradient was not finite in 3 steps in a row up to step 3" in text
    assert "not finite: ohem; lower --stages.teacher.losses.ohem" in text
    assert "Lower --stages.teacher.lr" in text
    assert "--precision" not in text
    said = capsys.readouterr().err
    assert said.count("warning: teacher: step 1 is skipped") == said.count("is skipped, as") == 1
    dump = json.loads((config.out / "debug" / "not-finite-teacher.json").read_text())
    assert [row["step"] for row in dump["skipped_steps"]] == [1, 2, 3]
    assert dump["skipped_steps"][0]["values"]["ohem"] == "nan"
    assert all("/train/" in name for row in dump["skipped_steps"] for name in row["sample_ids"])
    assert dump["gradients_not_finite"]
    assert dump["weights_not_finite"] == dump["images_not_finite"] == []


@pytest.mark.parametrize("first", [0, 2], ids=["none learnt", "the last not learnt"])
def test_a_stage_whose_last_steps_were_skipped_is_not_finished(config, fit, poison, capsys, first):
    poison("ohem", first)
    with pytest.raises(
        ConfigError, match=rf"(?s)in the last {5 - first} of 5 steps.*precision is bf16"
    ):
        fit(replace(config, precision="bf16"))
    assert not (config.out / "debug" / "teacher.safetensors").exists()
    newest = max(path.name for path in (config.out / "debug" / "checkpoints").iterdir())
    assert newest == "step-00000004"


def test_a_single_skipped_step_is_told_and_counted(config, fit, monkeypatch, capsys):
    real, calls = robustseg.loss_terms, []

    def poisoned(*args, **kwargs):
        calls.append(real(*args, **kwargs))
        return {k: v * (torch.nan if len(calls) == 2 else 1) for k, v in calls[-1].items()}

    monkeypatch.setattr(robustseg, "loss_terms", poisoned)
    assert fit(config)[1]
    said = capsys.readouterr().err
    assert "warning: teacher: step 2 is skipped" in said
    assert "teacher: 5/5" in said
    assert "skipped 1" in next(line for line in said.splitlines() if "teacher: 5/5" in line)


def test_weights_that_are_not_finite_are_never_saved(config, fit, monkeypatch):
    real = TrainStep.__call__

    def spoiled(train, step, *batches):
        values = real(train, step, *batches)
        if step == 2:
            next(iter(train.networks.main.parameters())).data.fill_(torch.inf)
        return values

    monkeypatch.setattr(TrainStep, "__call__", spoiled)
    with pytest.raises(ConfigError, match="the weights are not finite after step 4"):
        fit(config)
    assert [p.name for p in (config.out / "debug" / "checkpoints").iterdir()] == ["step-00000002"]
    dump = json.loads((config.out / "debug" / "not-finite-teacher.json").read_text())
    assert len(dump["weights_not_finite"]) >= 1


def test_images_that_are_not_finite_are_named(config, fit, monkeypatch):
    faults = CorruptionConfig(blackout=0.1)
    config = replace(config, max_skipped=1, data=replace(config.data, corruption=faults))
    real = trainer_module.on_device

    def poisoned(batches, device):
        for batch in real(batches, device):
            batch.images[1, 0, 0, 0, 0] = torch.nan
            yield batch

    monkeypatch.setattr(trainer_module, "on_device", poisoned)
    with pytest.raises(ConfigError, match=r"not finite: \S+/train/\S+ \(depth\): mend") as error:
        fit(config)
    assert "--data.corruption.* is active (blackout 0.1)" in str(error.value)


def test_other_training_samples_under_a_run_are_refused(config, fit, monkeypatch):
    fit(replace(config, stop_after=2))
    monkeypatch.setattr(
        trainer_module,
        "build_loader",
        lambda *args, build=trainer_module.build_loader, **kwargs: _renamed(build(*args, **kwargs)),
    )
    with pytest.raises(ConfigError, match=r"training samples under .* are not those"):
        fit(config)


def _renamed(loader):
    loader.fingerprint = "0" * 64
    return loader


def test_learning_from_scratch_lowers_the_loss(config, fit, losses):
    stage = replace(config.stages["teacher"], steps=40, losses=RobustSegWeights(ohem=1))
    config = replace(config, name="learn", stages={"teacher": stage}, log_every=10)
    config = replace(config, evaluation=replace(config.evaluation, every=1000))
    path, _ = fit(config)
    values = [float.fromhex(v) for (_, _, term), v in losses(path).items() if term == "loss"]
    assert values[-1] < 0.8 * values[0]
