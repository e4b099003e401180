"""Steps whose gradient is not finite: skipped, told, refused, written down and repeated alone."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fastseg.engine import trainer as trainer_module
from fastseg.engine.context import RunContext
from fastseg.engine.not_finite.repeat import repeat
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.step import TrainStep
from fastseg.engine.trainer import Trainer
from fastseg.errors import CheckpointError, ConfigError
from fastseg.evaluation.validation import Validation
from fastseg.methods import robustseg
from fastseg.pipelines import CorruptionConfig

pytestmark = pytest.mark.fault("F13", "F14")


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
    monkeypatch.undo()
    again = repeat(config.out / "debug" / "not-finite-teacher.json")
    assert math.isnan(again.values["ohem"])
    assert "gradients that are not finite: " in again.describe()


def test_a_step_is_repeated_alone_with_its_draws(config, fit, poison, monkeypatch):
    """Of the student, after a teacher that learnt: what was finite has the same digits."""
    accumulate = 2
    evaluation = replace(config.evaluation, every=1000)
    config = replace(config, max_skipped=2, accumulate=accumulate, evaluation=evaluation)
    poison("ohem", first=(5 + 2) * accumulate)
    with pytest.raises(ConfigError, match=r"repeat \S+not-finite-student\.json repeats the step"):
        fit(config)
    file = config.out / "debug" / "not-finite-student.json"
    dump = json.loads(file.read_text())
    again = repeat(file)
    assert again.step == 4
    assert "  ohem: nan\n" in again.describe()
    assert math.isnan(again.values.pop("ohem"))
    assert math.isnan(again.values.pop("loss"))
    kept = dump["repeated"]["values"]
    assert again.values == {k: v for k, v in kept.items() if k not in ("ohem", "loss")}
    assert len(again.values) == 3
    monkeypatch.undo()
    assert math.isfinite(repeat(file).values["ohem"])
    file.with_suffix(".safetensors").unlink()
    with pytest.raises(CheckpointError, match="give the not-finite-<stage>"):
        repeat(file)
