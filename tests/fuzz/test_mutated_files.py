"""A thousand mutated files and command lines: a result that is right, or fastseg's one message."""

import contextlib
import io
import random
from pathlib import Path

import pytest

from fastseg import data, evaluate, predict, train
from fastseg.models import __main__ as models
from tests.support.hostile import reading, stored
from tests.support.hostile.mutations import TEXTS, mutate
from tests.support.optional_hypothesis import given, settings, st

pytestmark = pytest.mark.fault("F34")

READERS = [
    *("image", "label", "array", "description", "config.toml", "config.yaml", "config.json"),
    *("split list", "list of samples", "calibration", "metrics", "results", "details"),
]
EACH = 36


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return reading.targets() | stored.targets(tmp_path_factory.mktemp("originals"))


def attempt(target, seed, folder):
    content = mutate(target.seeds, random.Random(seed))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        target.read(content, folder)


def examples(count):
    """As many draws as wanted, the same in every run."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize("name", READERS)
def test_files_without_a_run(targets, tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("scratch")
    for seed in targets[name].seeds[:3]:
        targets[name].read(seed, folder)

    @examples(EACH)
    @given(seed=st.integers(0, 2**32))
    def mutated(seed):
        attempt(targets[name], seed, folder)

    mutated()


def test_stored_files(targets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    names = [name for name in targets if name not in READERS]
    for name in names:
        assert targets[name].read(targets[name].seeds[0], folder), name

    @examples(30 * len(names))
    @given(name=st.sampled_from(names), seed=st.integers(0, 2**32))
    def mutated(name, seed):
        attempt(targets[name], seed, folder)

    mutated()


WORDS = [
    *("--preset", "debug", "demo", "--data.size", "64", "--data.root", ".", "--config", "--name"),
    *("--stages.teacher.steps", "4", "--data.modalities", "img", "--print-config", "json", "-h"),
    *("--checkpoint", "--out", "--split", "val", "--list", "--folder", "check", "pack", "convert"),
    *("--data.corruption.noise", "high", "--optim.lr", "1e-3", "--seed", "0", "--losses.rrm"),
    *("--teacher", "a=b", "--x", "--", "=", "--data.size=32", "--protocols", "all", "", "\0"),
    *("1" * 5000, "-1", "nan", "1e999", "0x10", "None", "../x", "é", "\udcff"),
    *(text.decode("utf-8", "surrogateescape") for text in TEXTS if len(text) < 99),
]


def test_command_lines(tmp_path, monkeypatch):
    """Every command ends by itself with exit code 0 or 2; training is never begun."""
    monkeypatch.chdir(tmp_path)
    mains = {"train": train.main, "evaluate": evaluate.main, "predict": predict.main}
    mains |= {"data": data.main, "models": models.main}

    @examples(60)
    @given(name=st.sampled_from(list(mains)), seed=st.integers(0, 2**32))
    def mutated(name, seed):
        draws = random.Random(seed)
        words = [draws.choice(WORDS) for _ in range(draws.choice((0, 1, 2, 3, 6)))]
        if name == "train":
            words += ["--print-config"]
        elif name == "models":
            words = ["convert", *words]
        elif name == "data":
            words = [draws.choice(("check", "pack", "stats", "fetch")), "--bad", *words]
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                code = mains[name](words)
            except SystemExit as end:
                code = end.code
        assert code in (0, None, 2), words
        assert "Traceback" not in said.getvalue()

    mutated()
    assert list(Path(tmp_path).iterdir()) == []
