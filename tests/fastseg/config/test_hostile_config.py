"""Whatever a config or a command line holds, the answer is a config or one message."""

import dataclasses
import json
import math
import typing

import pytest

from fastseg.cli.data_inspect import Check, Pack, Show
from fastseg.cli.data_make import Prepare, Synthetic
from fastseg.cli.parse import parse_config
from fastseg.config.presets.registry import get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import from_dict, read_config, to_dict
from fastseg.errors import ConfigError
from fastseg.evaluation.from_weights import EvaluateConfig
from fastseg.pipelines.projection import PrepareConfig
from fastseg.pipelines.synthetic import SyntheticConfig
from fastseg.pipelines.tools.settings import MOST, Range, field_types, misfit

HOSTILE = [
    None, True, False, -1, 0, 0.5, 1e308, 10**400, -(10**400), math.nan, math.inf, -math.inf,
    "", "x", "\0", "~nobody-of-this-name/x", [], [1], [1, 2, 3], [None, None], ["a", 1], {},
    {"a": 1}, {"a": None}, [[[[]]]],
]  # fmt: skip


def places(values, path=()):
    """Paths of all fields in the JSON form of a config, groups included."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def with_value(values, path, value):
    key, *rest = path
    return values | {key: with_value(values[key], rest, value) if rest else value}


def outcome(values):
    """The JSON form of what is read, or the message."""
    try:
        return to_dict(from_dict(TrainConfig, values, "config.json"))
    except ConfigError as error:
        return str(error)


PLACES = list(places(to_dict(get_preset("demo"))))


@pytest.mark.parametrize("path", PLACES, ids=".".join)
def test_a_hostile_value_is_taken_or_one_message_with_its_field(path):
    good = to_dict(get_preset("demo"))
    for value in HOSTILE:
        taken = outcome(with_value(good, path, value))
        if isinstance(taken, str):
            assert taken.startswith("config.json")
            assert len(taken) < 500
            continue
        # what is taken means what was written: no bool for a number, nothing endless
        for key in path:
            taken = taken[key]
        assert taken == value or isinstance(value, dict)
        assert isinstance(taken, bool) == isinstance(value, bool)
        assert not isinstance(value, float) or math.isfinite(value)


def numbers(kind):
    """Whether an annotation has a number in it."""
    parts = typing.get_args(kind)
    return kind in (int, float) or any(numbers(part) for part in parts)


@pytest.mark.parametrize(
    "kind",
    [EvaluateConfig, PrepareConfig, SyntheticConfig, Check, Show, Pack, Prepare, Synthetic],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("value", [math.nan, math.inf, True, -1, 10**400], ids=range(5))
def test_numbers_of_the_other_commands_are_checked(kind, value, tmp_path):
    required = {
        f.name: "muses" if f.name == "dataset" else tmp_path
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    names = [n for n, k in field_types(kind).items() if numbers(k) and n not in required]
    assert names
    for name in names:
        with pytest.raises(ValueError, match=f"^{name} must be "):
            kind(**required, **{name: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"out": 5}', "config.json.out must be a path, got 5"),
        ('{"out": ""}', "config.json.out: expected a path, got ''"),
        ('{"stages": []}', r"config.json.stages must be an object, got \[\]"),
        ('{"stages": {"a": null}}', "config.json.stages.a must be an object, got None"),
        ('{"stages": {"../a": {}}}', "the name of a stage must consist of letters"),
        ('{"data": {"scale": 0.5}}', "config.json.data.scale must be a list, got 0.5"),
        ('{"data": {"scale": [1]}}', r"config.json.data.scale must be a list of 2 values"),
        ('{"data": {"batch_size": true}}', "data.batch_size must be a whole number, got True"),
        ('{"optim": {"eps": 1e400}}', "optim.eps must be .*, got inf"),
        ('{"optim": {"max_norm": NaN}}', "optim.max_norm must be at least 0, got nan"),
        ('{"seed": 9223372036854775808}', r"config.json.seed must be .* below 2\*\*63"),
        ('{"seed": ' + "9" * 5000 + "}", "config.json is not JSON"),
        ('{"seed": 1, "seed": 2}', "the field 'seed' occurs twice"),
        ("[" * 100_000, "nested too deep"),
        ("5", "config.json must be an object, got 5"),
        ("\udcff", "not JSON"),
    ],
    ids=range(16),
)
def test_a_hostile_file_is_one_message(tmp_path, content, message):
    file = tmp_path / "config.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        read_config(file)


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_config(tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "-1", "", "x", "9" * 5000])
@pytest.mark.parametrize(
    "option",
    [
        "--optim.weight-decay", "--optim.eps", "--optim.max-norm", "--stages.teacher.epochs",
        "--stages.teacher.power", "--parallel.timeout", "--data.jitter", "--data.batch-size",
        "--synthetic.size", "--model.embed-dim", "--evaluation.every", "--save-every",
    ],
)  # fmt: skip
def test_a_hostile_option_is_one_message(option, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config("train", "", ["--preset", "debug", f"{option}={value}"])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_ranges_hold_what_they_say():
    assert [x in Range(0, 1) for x in (-0.1, 0, 0.5, 1, 1.1, math.nan)] == [0, 1, 1, 1, 0, 0]
    assert [x in Range(0, 1, above=True, below=True) for x in (0, 0.5, 1)] == [0, 1, 0]
    assert [x in Range(32, 96, multiple=32) for x in (0, 32, 33, 96, 128)] == [0, 1, 0, 1, 0]
    assert [x in Range(1) for x in (0, MOST, MOST + 1, math.inf)] == [0, 1, 0, 0]
    assert misfit(typing.Annotated[int, Range(1)], MOST + 1) == f"at most {MOST}"
    assert str(Range(0, 1, below=True)) == "in [0, 1)"


def test_written_configs_of_all_kinds_of_json_are_read(tmp_path):
    values = to_dict(get_preset("demo"))
    # floats may be written as whole numbers
    values["data"]["scale"] = [1, 2]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    assert [type(x) for x in read_config(file).data.scale] == [float, float]
