"""A method and a model from outside are trained, resumed, scored and reported like any other."""

import csv
from dataclasses import replace

import pytest
import torch

from fastseg import evaluate
from fastseg.config.serialise import from_dict, read_config, to_dict
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.trainer import Trainer
from fastseg.evaluation.run_report import write_run_report
from fastseg.evaluation.subsets import run_subsets
from fastseg.evaluation.validation import Validation
from tests.support import toy_backbone, toy_method
from tests.support.resuming import assert_resumes


@pytest.fixture(params=["both", "method", "model"])
def toy(request, config):
    """Runs with the toy method, with the toy model, and with both."""
    config = replace(config, ema=0.9)
    if request.param != "model":
        options = toy_method.ToyOptions(temperature=1.5)
        stages = toy_method.stages(5)
        config = replace(config, method=toy_method.NAME, stages=stages, losses=options)
    if request.param != "method":
        config = replace(config, model=replace(config.model, backbone=toy_backbone.NAME))
    return config


def test_a_run_resumes_to_the_last_bit(toy, fit, losses):
    assert_resumes(toy, fit, losses, stop_after=3)


def test_all_networks_are_scored_and_reported(toy, capsys):
    with RunFolder(toy) as run:
        context = RunContext(run.config)
        trainer = Trainer(context, run, Validation)
        trainer.fit()
        files = run.network_files()
        networks = {name: context.load_network(path, name) for name, path in files.items()}
        printed = write_run_report(context, networks, trainer.metrics.rows(), run.path)
    names = list(context.method.networks)
    assert [line.split()[0] for line in printed.splitlines()[1:]] == [*names, "gain"]
    with (run.path / "results.csv").open() as file:
        rows = [(row["model"], row["subset"]) for row in csv.DictReader(file)]
    subsets = [subset.name for subset in run_subsets(context)]
    assert rows == [(name, subset) for name in names for subset in [*subsets, "Mean"]]
    page = (run.path / "report.html").read_text()
    assert all(f">{name}</th>" in page for name in names)
    assert f"points above the {names[0]}" in page or f"points below the {names[0]}" in page
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", str(run.path)]) == 0
    assert capsys.readouterr().out.rstrip() == printed


def test_a_config_keeps_the_types_of_its_method(toy, tmp_path):
    assert from_dict(type(toy), to_dict(toy)) == toy
    with RunFolder(toy) as run:
        assert read_config(run.config_file).stages == toy.stages


def test_networks_learn_together_at_their_own_rates_from_what_is_frozen(config):
    """The coach stays as it is to the last bit, and the right network has half the rate."""
    stages, options = toy_method.stages(3), toy_method.ToyOptions()
    config = replace(config, method=toy_method.NAME, stages=stages, losses=options)
    with RunFolder(config) as run:
        trainer = Trainer(RunContext(config), run, Validation)
        trainer._run_stage(trainer.set_up("coach"))
        session = trainer.open_session(trainer.set_up("pair"))
        networks, step = session.networks, session.step_fn
        coach = {k: v.clone() for k, v in networks.frozen["coach"].state_dict().items()}
        start = {k: v.clone() for k, v in networks.learning["left"].state_dict().items()}
        assert all(torch.equal(start[k], coach[k]) for k in coach if "bn" not in k)
        right = networks.learning["right"].state_dict()
        assert any(not torch.equal(start[k], right[k]) for k in coach)
        right = {k: v.clone() for k, v in right.items()}
        batch = next(trainer.loader.batches(0))
        values = step(0, batch)
        assert set(values) == {"ohem", "agree", "guide", "loss", "grad_norm", "skipped"}
        wanted = values["ohem"] + values["agree"] + 2 * values["guide"]
        torch.testing.assert_close(values["loss"], wanted)
        rates = [group["lr"] for group in session.optimizer.param_groups]
        assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])
        now = networks.frozen["coach"].state_dict()
        assert all(torch.equal(now[k], v) for k, v in coach.items())
        for name, before in (("left", start), ("right", right)):
            after = networks.learning[name].state_dict()
            assert any(not torch.equal(after[k], v) for k, v in before.items())
        trainer.loader.close()
        trainer.val_loader.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trains": "left+nobody_else"}, "unknown network 'nobody_else'.*coach, left, right"),
        (
            {"trains": "left", "learns_from": "right", "start": "random"},
            "needs a right: put a stage that trains one before it",
        ),
        ({"start": "coach+right"}, "needs a right"),
        ({"learns_from": "coach+left"}, "trains the left cannot learn from it"),
    ],
)
def test_networks_that_are_not_there_are_refused(config, change, message):
    stages = toy_method.stages(3)
    with pytest.raises(ValueError, match=message):
        replace(
            config, method=toy_method.NAME, losses=toy_method.ToyOptions(),
            stages={**stages, "pair": replace(stages["pair"], **change)},
        )  # fmt: skip


def test_losses_of_another_method_are_refused(config):
    with pytest.raises(ValueError, match="losses are not those of the method toy_mutual"):
        replace(config, method=toy_method.NAME)
    with pytest.raises(ValueError, match=r"unknown method 'robust'.*did you mean 'robustseg'"):
        replace(config, method="robust")


def test_a_model_that_reads_which_modalities_are_there_is_not_replayed(config, monkeypatch):
    model = replace(config.model, backbone=toy_backbone.NAME)
    config = replace(config, model=model)
    with RunFolder(config) as run:
        trainer = Trainer(RunContext(config), run, Validation)
        session = trainer.open_session(trainer.set_up("teacher"))
        session.step_fn.device = torch.device("cuda")
        reads = session.networks.main.reads_present
        trainer.loader.close()
        trainer.val_loader.close()
    assert reads
    graphs = fast_paths_on_a_gpu(config, reads)
    assert (graphs.value, "which modalities are there" in graphs.why) == (False, True)


def fast_paths_on_a_gpu(config, reads_present):
    from fastseg.choice import Choice
    from fastseg.engine.speed.choices import _graphs

    kernels = Choice(True, "fused losses")
    return _graphs("auto", torch.device("cuda"), "single", 1, kernels, object(), reads_present)


def test_models_are_found_by_the_name_of_their_backbone(config):
    from fastseg.errors import ConfigError
    from fastseg.models import model_builder

    with pytest.raises(ConfigError, match="unknown backbone 'toy_con': did you mean 'toy_conv'"):
        model_builder("toy_con")
    network = RunContext(
        replace(config, model=replace(config.model, backbone=toy_backbone.NAME))
    ).new_network(0)
    assert list(network.stems) == ["img", "depth", "event", "lidar"]
    assert len(network.modality_parameters("depth")) == 2
    with pytest.raises(ConfigError, match="cannot compute activations again"):
        network.recompute(True)
    with pytest.raises(ConfigError, match="knows no files of encoder weights"):
        network.load_encoder("file.pth")
