"""A flipped bit anywhere in the files of a run: found and named, or without any effect."""

import json
import random
from dataclasses import replace

import pytest

from fastseg.checkpoint.intact import examine
from fastseg.checkpoint.state import TrainingStates
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import read_config
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.errors import CheckpointError, ConfigError
from fastseg.pipelines.tools.tensor_digest import tensors_digest
from fastseg.report.metrics_log import MetricsLog
from fastseg.report.results import read_results

pytestmark = pytest.mark.fault("F2")
FLIPS = [12, pytest.param(200, marks=pytest.mark.endurance)]
REFUSED = CheckpointError, ConfigError


@pytest.fixture
def flipped():
    """Yield a file with one bit after the other flipped; it is whole again at the end."""

    def flip(path, count):
        data = path.read_bytes()
        dice = random.Random(len(data))
        # both ends, the header behind the first eight bytes, and any others
        places = [0, 1, 9, len(data) - 1, *(dice.randrange(len(data)) for _ in range(count - 4))]
        try:
            for place in places:
                damaged = bytearray(data)
                damaged[place] ^= 1 << dice.randrange(8)
                path.write_bytes(damaged)
                yield place
        finally:
            path.write_bytes(data)

    return flip


@pytest.fixture
def stopped(config, fit):
    """A run that was stopped after four steps, with the states of steps 2 and 4."""
    path, finished = fit(replace(config, stop_after=4))
    assert not finished
    return path


@pytest.mark.parametrize("flips", FLIPS)
def test_no_file_of_a_state_hides_one(config, stopped, flipped, capsys, flips):
    newest, before = stopped / "checkpoints/step-00000004", stopped / "checkpoints/step-00000002"
    files = sorted(newest.iterdir())
    assert len(files) == 4
    for path in files:
        hidden = [place for place in flipped(path, flips) if examine(newest) is None]
        assert hidden == [], path.name
    assert examine(newest) is None
    context = RunContext(replace(config, precision="fp32"))
    for path in files:
        for _ in flipped(path, 4):
            found = TrainingStates(newest.parent).newest("teacher", lambda: context.new_network(0))
            assert found is not None
            assert found[0] == before
            assert f"{newest} is passed over: " in capsys.readouterr().err


@pytest.mark.parametrize("flips", FLIPS)
def test_weights_are_those_that_were_written_or_refused(untrained, flipped, flips):
    context = RunContext(read_config(untrained / "config.json"))
    path = untrained / "teacher.safetensors"
    written, refused = tensors_digest(context.load_network(path).state_dict()), 0
    unnamed = []
    for place in flipped(path, flips):
        try:
            loaded = context.load_network(path)
        except REFUSED as error:
            refused += 1
            unnamed += [f"{error}"] * (f"{path}" not in f"{error}")
        else:
            assert tensors_digest(loaded.state_dict()) == written, place
    assert unnamed == []
    assert refused >= flips // 2


@pytest.mark.parametrize("flips", FLIPS)
def test_a_run_is_not_continued_with_another_config(config, stopped, flipped, flips):
    with RunFolder(config) as run:
        wanted = run.config
    kept, unnamed = 0, []
    for place in flipped(stopped / "config.json", flips):
        try:
            with RunFolder(config) as run:
                assert run.config == wanted, place
            kept += 1
        except REFUSED as error:
            unnamed += [f"{error}"] * (f"{stopped}" not in f"{error}")
    assert unnamed == []
    assert kept < flips
    assert isinstance(read_config(stopped / "config.json"), TrainConfig)


@pytest.mark.parametrize("flips", FLIPS)
def test_a_log_loses_the_damaged_row_at_most(stopped, flipped, flips, capsys):
    file = stopped / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 4
    for place in flipped(file, flips):
        log = MetricsLog(file)
        log.rewind("teacher", 4)
        whole = sum(row in rows for row in log.rows())
        assert whole >= len(rows) - 2, place  # a flipped end of line spoils two


@pytest.mark.parametrize("flips", FLIPS)
def test_a_table_is_read_or_refused_with_its_line(untrained, flipped, flips):
    file = untrained / "results.csv"
    refused, unnamed = 0, []
    for place in flipped(file, flips):
        try:
            results, _ = read_results(file)
        except ValueError as error:
            refused += 1
            unnamed += [f"{error}"] * (f"{file}" not in f"{error}")
        else:
            assert all(0 <= row.miou_all <= 1 for row in results), place
    assert unnamed == []
    assert refused
