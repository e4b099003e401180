"""Config files in TOML, YAML and JSON: one typed path, an order of who wins, a way back."""

import dataclasses
import json
import typing

import pytest

from fastseg import train
from fastseg.cli.parse import parse_config
from fastseg.config.compare import digest
from fastseg.config.files import read_config_file
from fastseg.config.notations import NOTATIONS, read_values, render
from fastseg.config.presets.registry import PRESETS, get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import from_dict, read_config, to_dict
from fastseg.errors import ConfigError
from fastseg.methods.stage import Stage
from fastseg.pipelines.tools.settings import field_types

TOML = """
preset = "debug"
seed = 5
[optim]
eps = 1e-3
[speed]
compile = "off"
[stages.teacher]
lr = 0.01
"""
YAML = """
preset: debug
seed: 5
optim: {eps: 1e-3}
speed:
  compile: off
stages:
  teacher: {lr: 1e-2}
"""
JSON = """{"preset": "debug", "seed": 5, "optim": {"eps": 1e-3}, "speed": {"compile": "off"},
"stages": {"teacher": {"lr": 0.01}}}"""
TEXTS = {"toml": TOML, "yaml": YAML, "yml": YAML, "json": JSON, "conf": JSON}


def written(folder, text, suffix="toml"):
    path = folder / f"my.{suffix}"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", TEXTS)
def test_all_notations_say_the_same_over_their_preset(tmp_path, suffix):
    base = get_preset("debug")
    config = read_config_file(written(tmp_path, TEXTS[suffix], suffix))
    teacher = dataclasses.replace(base.stages["teacher"], lr=0.01)
    assert config == dataclasses.replace(
        base,
        seed=5,
        optim=dataclasses.replace(base.optim, eps=1e-3),
        speed=dataclasses.replace(base.speed, compile="off"),
        stages=base.stages | {"teacher": teacher},
    )


@pytest.mark.parametrize(
    ("options", "seed", "lr", "name"),
    [
        ([], 5, 0.01, "debug"),
        (["--seed", "6"], 6, 0.01, "debug"),
        (["--stages.teacher.lr", "0.5"], 5, 0.5, "debug"),
        # the command line's preset stands under the file, too
        (["--preset", "demo"], 5, 0.01, "demo"),
    ],
)
def test_options_win_over_the_file_and_the_file_over_the_preset(tmp_path, options, seed, lr, name):
    file = written(tmp_path, TOML)
    config = parse_config("train", "", ["--config", str(file), *options])
    assert (config.seed, config.stages["teacher"].lr, config.name) == (seed, lr, name)
    assert config.stages["student"] == get_preset(name).stages["student"]


def test_a_file_without_a_preset_stands_by_itself(tmp_path):
    assert read_config_file(written(tmp_path, "seed = 3")) == TrainConfig(seed=3)
    assert read_config_file(written(tmp_path, "# nothing\n", "yaml")) == TrainConfig()
    with pytest.raises(ConfigError, match=r"no stage: start from a preset \(--preset demo, or"):
        parse_config("train", "", ["--config", str(tmp_path / "my.toml")])


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("name", ["demo", "debug_any2seg", "muses_robustseg_b0_published"])
def test_what_is_printed_is_read_as_the_same_config(tmp_path, capsys, name, notation):
    arguments = ["--preset", name, "--seed", "7", "--data.packed", str(tmp_path / 'a "b"\\é')]
    arguments += ["--data.modalities"] if name == "demo" else []
    with pytest.raises(SystemExit) as end:
        parse_config("train", "", [*arguments, "--print-config", notation])
    assert not end.value.code
    file = written(tmp_path, capsys.readouterr().out, notation)
    wanted = parse_config("train", "", arguments)
    for config in (read_config(file), parse_config("train", "", ["--config", str(file)])):
        assert config == wanted
        assert digest(config) == digest(wanted)


@pytest.mark.parametrize("notation", NOTATIONS)
def test_every_preset_has_one_form_in_every_notation(notation):
    for name in PRESETS:
        config = get_preset(name)
        back = from_dict(TrainConfig, NOTATIONS[notation][0](render(to_dict(config), notation)))
        assert back == config
        assert digest(back) == digest(config)


def test_what_may_be_none_is_none_unless_it_is_named():
    """TOML has no null, and leaves these out."""
    kinds = [TrainConfig, Stage]
    for kind in kinds:
        for name, of in field_types(kind).items():
            if dataclasses.is_dataclass(of) and of not in kinds:
                kinds.append(of)
            if type(None) in typing.get_args(of):
                assert {f.name: f.default for f in dataclasses.fields(kind)}[name] is None


def test_printing_touches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train.main(["--preset", "debug", "--model.weights", "gone.pth", "--print-config"])
    assert not end.value.code
    assert list(tmp_path.iterdir()) == []
    assert 'name = "debug"' in capsys.readouterr().out
    with pytest.raises(ConfigError, match="unknown notation 'tmol': did you mean 'toml'"):
        parse_config("train", "", ["--print-config", "tmol"])


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("toml", 'seed = "x"', r"my\.toml\.seed must be a whole number, got 'x'"),
        ("toml", "sede = 1", r"my\.toml: unknown field 'sede': did you mean 'seed'"),
        ("toml", 'preste = "demo"', r"my\.toml: unknown field 'preste': did you mean 'preset'"),
        ("toml", 'preset = "debgu"', r"my\.toml: unknown preset 'debgu': did you mean 'debug'"),
        ("toml", "preset = 1", r"my\.toml\.preset must be text, got 1"),
        ("toml", 'preset = "debug"\nmethod = "anyseg"', "preset debug is of the method robustseg"),
        ("toml", "seed = 1\nseed = 2", r"my\.toml is not TOML: Cannot overwrite"),
        ("toml", "data.flip = no", r"my\.toml is not TOML"),
        ("toml", "data = 3", r"my\.toml\.data must be an object, got 3"),
        ("toml", "seed = 2020-01-01", r"my\.toml\.seed must be a whole number, got datetime"),
        ("toml", 'preset = "demo"\n[data]\nbatch-size = 3', "'batch-size': did you mean 'batch_s"),
        ("yaml", "seed: 1\nseed: 2", "the field 'seed' occurs twice, again in line 2"),
        ("yaml", "data: {size: 64, size: 96}", "the field 'size' occurs twice, again in line 1"),
        ("yaml", "data: {flip: no}", r"my\.yaml\.data\.flip must be a number, got 'no'"),
        ("yaml", "tensorboard: yes", r"my\.yaml\.tensorboard must be true or false, got 'yes'"),
        ("yaml", "seed: 010", r"my\.yaml\.seed must be a whole number, got '010'"),
        ("yaml", "seed: 1:30", r"my\.yaml\.seed must be a whole number, got '1:30'"),
        ("yaml", "name: 2020-01-01\nseed: 1_0", r"my\.yaml\.seed must be .*, got '1_0'"),
        ("yaml", "1: 2", "a name in line 1 is not text"),
        ("yaml", "seed: !!python/object/apply:os.getcwd []", "is not YAML: could not determine"),
        ("yaml", "seed: [", "is not YAML: .* in line 1"),
        ("yaml", "seed: 1\n---\nseed: 2", "is not YAML: "),
        ("yaml", "- 1", r"my\.yaml must be an object, got \[1\]"),
        ("yaml", "a: &a {b: *a}", "more than 100000 values"),
        ("json", '{"seed": 1, "seed": 2}', "the field 'seed' occurs twice"),
        ("conf", "seed = 1", "is not JSON: .*; give a config in a .toml, .yaml or .json file"),
    ],
)
def test_a_wrong_file_is_one_message_with_file_key_and_value(tmp_path, suffix, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config_file(written(tmp_path, text, suffix))


def test_yaml_means_what_its_words_look_like(tmp_path):
    text = "a: [no, off, on, yes, 1e-3, 1E3, -.5, 0o7, 0x1F, 12e, null, ~, true, '1', 1.0, .5e1]"
    values = read_values(written(tmp_path, text, "yaml"))["a"]
    assert values == [
        *("no", "off", "on", "yes", 1e-3, 1e3, -0.5, "0o7", "0x1F", "12e"),
        *(None, None, True, "1", 1.0, 5.0),
    ]
    strange = {"a": ["no", "1e3", "1e-3", "010", "~", "", "null", "=", "1:30", "2020-01-01", "#"]}
    for notation in NOTATIONS:
        assert NOTATIONS[notation][0](render(strange, notation)) == strange


def test_text_of_any_letters_survives(tmp_path):
    values = {"a": '\x7f\x01 "\\\n\té€𝄞', "b c.d": {"ä": [True, 1, -1.5, 1e-300, 1e22]}}
    for notation in NOTATIONS:
        back = NOTATIONS[notation][0](render(values, notation))
        assert back == values
        assert json.dumps(back) == json.dumps(values)


def test_an_old_config_with_tensorboard_has_it_as_a_tracker():
    assert from_dict(TrainConfig, {"tensorboard": True}).trackers == ("tensorboard",)
    assert from_dict(TrainConfig, {"tensorboard": False}).trackers == ()
    both = from_dict(TrainConfig, {"tensorboard": True, "trackers": ["wandb"]})
    assert both.trackers == ("wandb", "tensorboard")


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("--tensorboard", "--trackers tensorboard"),
        ("--checkpoint=runs/demo", "continues it"),
        ("--corruption.blackout", "--data.corruption"),
    ],
)
def test_names_of_other_commands_are_refused_with_the_name_here(word, remedy):
    with pytest.raises(ConfigError, match=remedy):
        parse_config("train", "", [word])
