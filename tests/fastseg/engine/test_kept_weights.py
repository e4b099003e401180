"""The best network of a stage is kept beside the last, whatever interrupts the run."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fastseg.checkpoint.weights import read_identity
from fastseg.config.sections import EvaluationConfig
from fastseg.distributed.ranks import Ranks
from fastseg.engine.context import RunContext
from fastseg.engine.kept_weights import KeptWeights
from fastseg.engine.run_folder import RunFolder
from fastseg.evaluate import main as evaluate
from fastseg.evaluation import validation

# of the validations after each step, all subsets alike
SCORES = {"teacher": [0.1, 0.3, 0.2, 0.3, 0.1], "student": [0.2, 0.1, 0.1, 0.1, 0.4]}


@pytest.fixture
def scored(config, monkeypatch):
    """A config that validates after every step, and finds `SCORES`."""

    class Found:
        def __init__(self, value):
            self.miou_all = self.miou_present = value

        def scores(self):
            return self

    run = validation.Validation.run

    def found(self, session, done):
        value = SCORES[session.name][done - 1]
        monkeypatch.setattr(
            validation, "evaluate_subsets", lambda *_: {"R": Found(value), "RDEL": Found(value)}
        )
        return run(self, session, done)

    monkeypatch.setattr(validation.Validation, "run", found)
    return replace(config, evaluation=EvaluationConfig(every=1, best="mean", pictures=0))


def steps_of(path):
    """Steps that the networks in a run folder were trained for."""
    return {file.stem: read_identity(file)[1]["steps"] for file in path.glob("*.safetensors")}


def test_the_first_of_the_best_is_kept(scored, fit, capsys):
    path, _ = fit(scored)
    assert steps_of(path) == {"teacher": 5, "teacher-best": 2, "student": 5, "student-best": 5}
    best, last = (load_file(path / f"student{end}.safetensors") for end in ("-best", ""))
    assert all(torch.equal(best[name], last[name]) for name in last)
    best, last = (load_file(path / f"teacher{end}.safetensors") for end in ("-best", ""))
    assert not all(torch.equal(best[name], last[name]) for name in last)
    said = capsys.readouterr().err
    assert "teacher: best mean over subsets 30.00, after step 2, kept in" in said


def test_a_run_without_the_option_keeps_the_last_alone(config, fit):
    path, _ = fit(config)
    assert steps_of(path) == {"teacher": 5, "student": 5}


def test_interrupted_runs_keep_the_same(scored, fit):
    quiet, _ = fit(scored)
    broken = replace(scored, name="broken", stop_after=2)
    while not (found := fit(broken))[1]:
        pass
    for name, steps in steps_of(quiet).items():
        assert steps_of(found[0])[name] == steps
        own, other = (load_file(path / f"{name}.safetensors") for path in (found[0], quiet))
        assert all(torch.equal(own[key], other[key]) for key in other)


def test_a_kill_between_score_and_weights_loses_nothing(scored, fit, monkeypatch):
    write = KeptWeights._write

    def killed(self, session, name, network, path, done):
        if path.name == "teacher-best.safetensors" and done == 2:
            raise KeyboardInterrupt
        write(self, session, name, network, path, done)

    monkeypatch.setattr(KeptWeights, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(scored)
    monkeypatch.setattr(KeptWeights, "_write", write)
    path, _ = fit(scored)
    assert steps_of(path)["teacher-best"] == 2


@pytest.mark.parametrize("stop_after", [0, 1])
def test_patience_ends_a_stage(scored, fit, stop_after, capsys):
    config = replace(
        scored, evaluation=replace(scored.evaluation, patience=2), stop_after=stop_after
    )
    while not (found := fit(config))[1]:
        pass
    # the teacher's best is step 2, the student's step 1
    assert steps_of(found[0]) == {
        "teacher": 4, "teacher-best": 2, "student": 3, "student-best": 1,
    }  # fmt: skip
    rows = [json.loads(line) for line in (found[0] / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows if row["stage"] == "student") == 3
    assert "student: ended after step 3 of 5, 2 validations without" in capsys.readouterr().err


def test_the_best_network_can_be_scored(scored, fit, capsys, monkeypatch):
    path, _ = fit(scored)
    monkeypatch.undo()
    assert evaluate(["--checkpoint", str(path / "teacher-best.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("teacher")


@pytest.mark.parametrize(("split", "best", "warned"), [
    ("test", "mean", True), ("test", "none", False), ("val", "full", False),
])  # fmt: skip
def test_a_choice_on_the_test_split_is_warned_of(config, split, best, warned):
    config = replace(
        config,
        data=replace(config.data, eval_split=split),
        evaluation=replace(config.evaluation, best=best),
    )
    kept = KeptWeights(RunContext(config, Ranks(torch.device("cpu"))), RunFolder(config), None)
    assert (kept.warning is not None) == warned


def test_patience_alone_keeps_the_last_network(scored, fit):
    config = replace(scored, evaluation=replace(scored.evaluation, best="none", patience=2))
    assert steps_of(fit(config)[0]) == {"teacher": 4, "student": 3}
