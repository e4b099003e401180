"""What a training state keeps beside the weights, and states of earlier versions."""

from dataclasses import replace

import pytest

from fastseg.checkpoint.state import TrainingStates
from fastseg.checkpoint.weights import save_weights
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.trainer import Trainer
from fastseg.evaluation.validation import Validation

KERNELS = {"where": "a GPU", "levels": ["cudnn", None, "flash", "efficient"]}


@pytest.fixture
def student(config):
    """Open the student's stage of a run with the form of RRM that is given."""

    def make(form):
        changed = replace(config, losses=replace(config.losses, rrm=form))
        context = RunContext(changed)
        with RunFolder(changed) as run:
            teacher = context.new_network(seed=0)
            save_weights(run.network_file("teacher"), teacher, context.identity("teacher"), {})
            trainer = Trainer(context, run, Validation)
            return trainer.open_session(trainer.set_up("student"))

    return make


def saved(session, folder):
    """Path and content of a state of this session."""
    # a state without moments of the optimizer would be passed over
    for weight in session.networks.main.parameters():
        weight.grad = weight.new_zeros(weight.shape)
    session.optimizer.step()
    states = TrainingStates(folder)
    session.save(states, 3, {"fingerprint": "of the samples"}, keep=1)
    return states.newest("student", lambda: session.context.new_network(0))


@pytest.mark.parametrize("kernels", [None, KERNELS], ids=["none", "chosen"])
def test_the_kernels_of_attention_outlive_a_session(student, tmp_path, kernels):
    first, second = student("paper"), student("paper")
    first.step_fn.attention = kernels
    path, state = saved(first, tmp_path)
    second.restore(path, state)
    assert second.step_fn.attention == kernels
    # states of earlier versions do not have them
    second.restore(path, {name: value for name, value in state.items() if name != "attention"})
    assert second.step_fn.attention is None


@pytest.mark.parametrize("form", ["paper", "code", "code-normalised"])
def test_a_state_from_before_the_forms_changed_is_said_to_be_one(student, tmp_path, capsys, form):
    session = student(form)
    path, state = saved(session, tmp_path)
    capsys.readouterr()
    session.restore(path, state)
    assert capsys.readouterr().err == ""
    del state["rrm"]
    session.restore(path, state)
    said = capsys.readouterr().err
    assert ("warning: student: step 3 was saved when" in said) == (form == "code")
    assert ("--losses.rrm code-normalised" in said) == (form == "code")


@pytest.mark.parametrize("start", ["random", "encoder"])
def test_weights_that_no_stage_reads_are_said(config, tmp_path, capsys, start):
    stages = {"teacher": replace(config.stages["teacher"], start=start)}
    model = replace(config.model, weights=tmp_path / "mit.pth")
    config = replace(config, model=model, stages=stages)
    with RunFolder(config) as run:
        Trainer(RunContext(config), run, Validation)
    said = "--model.weights is not read" in capsys.readouterr().err
    assert said == (start == "random")
