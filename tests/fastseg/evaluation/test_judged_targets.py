"""A network that a stage learns from is scored before the first step; a weak one is warned of."""

import re
from dataclasses import replace

import pytest

from fastseg.checkpoint.weights import save_weights
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.trainer import Trainer
from fastseg.evaluation import validation
from fastseg.evaluation.protocols.modality_subsets import evaluate_subsets
from fastseg.pipelines import build_loader


@pytest.fixture
def stage(config):
    """Validation and session of the student's stage, whose teacher has random weights."""
    config = replace(config, data=replace(config.data, eval_batch_size=1))
    context = RunContext(config)
    with RunFolder(config) as run:
        teacher = context.new_network(seed=0)
        save_weights(run.network_file("teacher"), teacher, context.identity("teacher"), {})
        trainer = Trainer(context, run, validation.Validation)
        yield trainer.validation, trainer.open_session(trainer.set_up("student"))


@pytest.mark.fault("F42")
@pytest.mark.parametrize("floor", [0.0, 0.9])
def test_it_is_the_score_of_the_full_set(stage, config, capsys, monkeypatch, floor):
    monkeypatch.setattr(validation, "TARGET_FLOOR", floor)
    judge, session = stage
    capsys.readouterr()
    judge.judge_targets(session)
    said = capsys.readouterr().err
    context = session.context
    batches = build_loader(config.data, train=False).batches()
    *_, full = evaluate_subsets(context, context.new_network(seed=0), batches).values()
    score = 100 * full.scores().miou_all
    assert 0 < score < 90
    (found,) = re.findall(r"student: the teacher that it learns from scores mIoU ([\d.]+)", said)
    assert float(found) == pytest.approx(score, abs=0.06)
    assert ("warning" in said) == ("little to learn from it" in said) == (floor > 0)


def test_no_more_than_some_batches_are_read(stage, capsys, monkeypatch):
    monkeypatch.setattr(validation, "TARGET_BATCHES", 2)
    judge, session = stage
    judge.judge_targets(session)
    assert "on 2 samples of val" in capsys.readouterr().err
