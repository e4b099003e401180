import json
from dataclasses import replace

import pytest

from fastseg import data
from fastseg.cli.parse import parse, parse_config
from fastseg.cli.places import check_places
from fastseg.config.presets.registry import get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import from_dict, to_dict
from fastseg.errors import ConfigError
from fastseg.evaluation.from_weights import EvaluateConfig


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_is_expanded_in_every_path_option(home, capsys):
    arguments = ["--data.root=~/d", "--out=~/r", "--data.packed=~/p"]
    config = parse_config("train", "", arguments)
    assert [config.data.root, config.out, config.data.packed] == [home / x for x in "drp"]
    assert parse(EvaluateConfig, args=["--checkpoint=~/c"]).checkpoint == home / "c"
    data.main(["check", "--root=~/d"])
    assert str(home / "d") in capsys.readouterr().err


def test_home_is_expanded_in_a_config_file(home):
    assert from_dict(TrainConfig, {"data": {"root": "~/d"}}).data.root == home / "d"
    file = home / "config.json"
    file.write_text(json.dumps(to_dict(get_preset("debug"))))
    assert parse_config("train", "", ["--config=~/config.json"]) == get_preset("debug")


@pytest.mark.parametrize(
    "option", ["--data.root=", "--out=", "--model.weights=", "--out=~nobody-x/"]
)
def test_what_is_no_path_is_refused(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config("train", "", [option])
    assert stopped.value.code == 2
    assert option.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        pytest.param(
            *("--teacher", "none"),
            "--teacher .*none does not exist: give the teacher.safetensors of a finished run; "
            "the same command without --teacher trains a teacher first",
            marks=pytest.mark.fault("F41"),
        ),
        ("--teacher", "folder", "--teacher .*folder is a folder"),
        # its stages start at random and would not miss it
        ("--model.weights", "none", "--model.weights .*none does not exist: give a file"),
        ("--model.weights", "folder", "--model.weights .*folder is a folder"),
        ("--data.root", "file", "--data.root .*file is a file; give a folder"),
        ("--out", "file", "--out .*file is a file; give a folder"),
        ("--out", "file/runs", "--out .*file is a file; give a folder"),
        ("--config", "none", "no config at .*none"),
        ("--config", "folder", "cannot read .*folder: Is a directory"),
    ],
)
def test_places_are_checked_at_the_door(tmp_path, option, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=message):
        parse_config("train", "", [option, str(tmp_path / name)])


def test_an_empty_name_of_a_config_is_refused():
    with pytest.raises(ConfigError, match="--config: expected a path, got ''"):
        parse_config("train", "", ["--config", ""])


def test_a_run_without_stages_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"stages": {}}')
    with pytest.raises(ConfigError, match="has no stage"):
        parse_config("train", "", ["--config", str(file)])


def test_a_run_that_goes_on_needs_its_first_weights_no_more(tmp_path):
    demo = get_preset("demo")
    gone = replace(demo.model, weights=tmp_path / "gone.safetensors")
    config = replace(demo, out=tmp_path, model=gone)
    with pytest.raises(ConfigError, match="gone"):
        check_places(config)
    (tmp_path / "demo" / "checkpoints" / "step").mkdir(parents=True)
    check_places(config)
