"""Each recipe fits its data set, is listed for users, and trains on a tiny copy of that set."""

import csv
import json
import math
import re
from dataclasses import replace

import pytest

from fastseg import train
from fastseg.cli.parse import parse_config
from fastseg.config.presets.registry import PRESETS, get_preset
from fastseg.methods import METHODS
from fastseg.pipelines import get_dataset
from fastseg.pipelines.build import refuse_raw
from fastseg.pipelines.datasets import catalogue
from tests.support import dataset_trees as trees
from tests.support.tiny_clip import DIM, write_clip

SMALL = [
    *["--model.backbone", "mit_nano", "--model.embed-dim", "16", "--data.workers", "0"],
    *["--data.batch-size", "2", "--data.eval-batch-size", "2", "--data.loader", "torch"],
    *["--evaluation.pictures", "0", "--log-every", "5"],
]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_its_data_set(name):
    config = get_preset(name)
    spec = get_dataset(config.data.dataset)
    refuse_raw(spec, config.data.modalities)
    assert {config.data.train_split, config.data.eval_split} <= set(spec.splits)
    assert config.name == name
    networks = METHODS[config.method].networks
    assert {n for stage in config.stages.values() for n in stage.learners} <= set(networks)
    assert next(iter(config.stages.values())).needed() == ()


def test_presets_are_listed_for_users(capsys):
    with pytest.raises(SystemExit):
        parse_config("train", "", ["--help"])
    shown = re.sub(r"[\s│]+", "", capsys.readouterr().out)
    assert all(name in shown for name in PRESETS)


def test_mcubes_is_trained_as_published():
    for name in ("mcubes_robustseg_b0", "mcubes_robustseg_b2"):
        data = get_preset(name).data
        assert (data.size, data.eval_size, data.eval_split) == (512, 1024, "test")
        assert (data.scale, data.flip, data.jitter) == ((0.5, 2.0), 0.5, 0)
        assert (data.blur, data.blur_sigma, data.blur_place) == (0.5, (0, 1), "crop")
        assert data.blur_window == 0  # OpenCV's choice


def test_muses_is_augmented_as_deliver_and_the_published_reading_not_at_all():
    ours, theirs = get_preset("muses_robustseg_b0"), get_preset("muses_robustseg_b0_published")
    deliver = get_preset("deliver_robustseg_b0").data
    for field in ("scale", "flip", "jitter", "blur", "blur_sigma", "blur_place", "size"):
        assert getattr(ours.data, field) == getattr(deliver, field)
    assert ours.stages["student"].lr == theirs.stages["teacher"].lr == 1.2e-4
    assert theirs.data.dataset == "muses-robustseg"
    plain = (theirs.data.scale, theirs.data.flip, theirs.data.jitter, theirs.data.blur)
    assert plain == ((1, 1), 0, 0, 0)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A tiny tree of every data set."""
    folder = tmp_path_factory.mktemp("trees")
    trees.write_deliver(folder / "deliver")
    trees.write_mcubes(folder / "mcubes")
    trees.write_muses_projected(folder / "muses")
    trees.write_muses_projected(folder / "published", under="")
    return folder


REAL = [name for name in PRESETS if name.endswith(("_b0", "_b0_published"))]


@pytest.mark.parametrize("name", REAL)
def test_a_preset_trains(roots, tmp_path, capsys, monkeypatch, name):
    """Thirty steps from files on disk, over all stages, with the smallest network."""
    config = get_preset(name)
    data = name.split("_")[0]
    if name.endswith("published"):
        small = replace(get_dataset("muses-robustseg"), resize=(64, 64))
        monkeypatch.setitem(catalogue.DATASETS, "muses-robustseg", small)
        data = "published"
    size = {"mcubes": 32}.get(data, 64)
    options = ["--preset", name, "--data.root", str(roots / data), "--out", str(tmp_path)]
    options += ["--data.size", str(size), *SMALL]
    if "any2seg" in name:
        clip = write_clip(tmp_path / "clip")
        options += ["--losses.vision-language", str(clip), "--losses.embed-dim", str(DIM)]
    for stage in config.stages:
        options += [f"--stages.{stage}.steps", str(30 // len(config.stages))]
    if config.data.eval_size:
        options += ["--data.eval-size", str(size)]
    assert train.main(options) == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    trained = {n for stage in config.stages.values() for n in stage.learners}
    assert {line.split()[0] for line in table[1:]} - {"gain"} == trained
    with (tmp_path / name / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    spec = get_dataset(config.data.dataset)
    subsets = 2 ** len(spec.select(config.data.modalities)) - 1
    assert len(rows) == len(trained) * (subsets + 1)
    assert set(rows[0]) >= set(spec.classes)
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    assert sum(row["step"] for row in steps if row["step"] == 30 // len(config.stages)) == 30
    assert all(math.isfinite(row["loss"]) and not row["skipped"] for row in steps)
