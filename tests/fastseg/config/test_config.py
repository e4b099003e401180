import dataclasses
import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastseg.cli.parse import parse_config
from fastseg.config.compare import changed_fields, flatten
from fastseg.config.presets.registry import PRESETS, get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import from_dict, read_config, to_dict
from fastseg.errors import ConfigError
from fastseg.pipelines.tools.settings import binding, harmless, is_harmless


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    config = get_preset(name)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert PRESETS[name].__doc__


def test_every_field_has_a_help_line():
    for part in parts():
        for field in dataclasses.fields(part):
            if dataclasses.is_dataclass(field.type) or field.name in GROUPS:
                continue
            owner = next(
                c for c in part.__mro__ if field.name in vars(c).get("__annotations__", {})
            )
            body = inspect.getsource(owner)
            declaration = body.index(f"\n    {field.name}:")
            rest = body[declaration + 1 :].split("\n", 1)[1]
            assert rest.lstrip().startswith('"""'), f"{part.__name__}.{field.name}"


GROUPS = {
    "data", "synthetic", "model", "stages", "losses", "optim", "evaluation", "parallel", "speed",
}  # fmt: skip


def parts():
    config = get_preset("demo")
    stage = config.stages["student"]
    values = [config, config.data, config.synthetic, config.model, config.losses, config.optim]
    values += [config.evaluation, config.parallel, config.speed, stage, stage.losses]
    return [type(v) for v in values]


def test_deliver_is_augmented_as_published():
    for name in ("deliver_robustseg_b0", "deliver_robustseg_b2"):
        data = get_preset(name).data
        assert (data.scale, data.flip) == ((0.5, 2.0), 0.5)
        assert (data.jitter, data.jitter_range) == (0.2, (0.5, 1.5))
        assert (data.blur, data.blur_sigma, data.blur_window) == (0.2, (0.8, 0.8), 3)
        assert data.blur_place == "image"


def test_command_line_overrides_the_preset():
    config = parse_config(
        "train",
        "",
        ["--preset", "debug", "--stages.student.losses.hpdm", "7", "--data.modalities", "img"],
    )
    assert config.stages["student"].losses.hpdm == 7
    assert config.stages["teacher"] == get_preset("debug").stages["teacher"]
    assert config.data.modalities == ("img",)


def test_no_argument_is_the_demo():
    assert parse_config("train", "", []) == get_preset("demo")


def test_written_config_can_be_passed_back(tmp_path):
    config = replace(get_preset("demo"), seed=3)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    assert read_config(file) == config
    assert parse_config("train", "", ["--config", str(file), "--seed", "4"]).seed == 4


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--data.siez", "64"], ["--data.siez", "--data.size"]),
        (["--stages.student.losses.hdpm", "1"], ["--stages.student.losses.hpdm"]),
        (["--data.size", "100"], ["multiple of 32", "100"]),
        (["--precision", "fp8"], ["fp8", "bf16"]),
        (["--model.backbone", "mit_b9"], ["mit_b9", "did you mean 'mit_b"]),
        (["--stages.teacher.lr", "-1"], ["lr must be between 0 and 1"]),
        (["--name", "a/b"], ["letters, digits"]),
    ],
)
def test_bad_option_names_the_value_and_what_is_known(arguments, parts, capsys):
    with pytest.raises(SystemExit) as exit_code:
        parse_config("train", "", arguments)
    assert exit_code.value.code == 2
    output = " ".join(capsys.readouterr().err.replace("│", " ").split())
    for part in parts:
        assert part in output


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'deliver_robustseg_b0'"):
        get_preset("deliver_robustsegb0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sede": 1}, "unknown field 'sede': did you mean 'seed'"),
        ({"seed": "x"}, "config.json.seed must be a whole number, got 'x'"),
        ({"precision": "fp8"}, "must be one of auto, fp32, bf16"),
        ({"data": {"size": 33}}, "config.json.data.size must be a multiple of 32 .*, got 33"),
    ],
)
def test_bad_config_file_is_one_message(tmp_path, change, message):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(get_preset("demo")) | change))
    with pytest.raises(ConfigError, match=message):
        read_config(file)


def test_config_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="no config at"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        read_config(tmp_path / "config.json")


@pytest.mark.fault("F24")
def test_only_fields_that_change_the_result_count_as_changed():
    config = get_preset("demo")
    harmless = replace(
        config, log_every=1, stop_after=5, data=replace(config.data, workers=0, cache=False)
    )
    assert changed_fields(config, harmless) == {}
    stages = config.stages | {"student": replace(config.stages["student"], lr=1e-4)}
    changed = changed_fields(config, replace(config, seed=1, stages=stages))
    assert set(changed) == {"seed", "stages.student.lr"}
    assert changed["seed"] == (0, 1)


HARMLESS = {
    "out", "device", "fresh", "allow_data_change", "stop_after", "log_every", "save_every",
    "save_async",
    "keep_checkpoints", "profile_steps", "trackers", "evaluation", "speed", "parallel",
    "model.checkpointing", "model.foundation", "data.root", "data.loader", "data.workers",
    "data.cache", "data.missing", "data.repeat", "data.damaged", "data.damaged_limit",
    "data.packed", "data.packed_auto", "data.eval_corruption", "data.eval_size",
    "data.eval_batch_size",
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_is_binding_or_harmless(preset):
    for name in flatten(to_dict(get_preset(preset))):
        expected = any(name == h or name.startswith(f"{h}.") for h in HARMLESS)
        assert is_harmless(TrainConfig, name) == expected, name


def test_a_field_without_a_mark_is_told():
    @dataclasses.dataclass
    class Settings:
        seed: int = binding(1)
        speed: int = harmless(2)
        forgotten: int = 3

    assert Settings() == Settings(1, 2, 3)
    assert [is_harmless(Settings, name) for name in ("seed", "speed")] == [False, True]
    with pytest.raises(LookupError, match=r"Settings\.forgotten is marked neither"):
        is_harmless(Settings, "forgotten")


@pytest.mark.fault("F41")
def test_student_without_a_teacher_is_refused():
    config = get_preset("demo")
    student = {"student": config.stages["student"]}
    with pytest.raises(ValueError, match=r"needs a teacher.*--teacher FILE"):
        replace(config, stages=student)
    assert replace(config, stages=student, teacher=Path("t.safetensors")).stages == student


def test_flatten():
    assert flatten({"a": {"b": 1}, "c": [2]}) == {"a.b": 1, "c": [2]}
