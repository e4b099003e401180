"""Faults of the data under a run: what is told, what is counted, what goes on."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg.checkpoint.data_facts import DataFacts
from fastseg.distributed.ranks import Ranks
from fastseg.errors import ConfigError
from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.cache.write import pack_split
from fastseg.pipelines.datasets.split_files import list_split


def spoil(root: Path, number: int) -> Path:
    path = sorted(root.glob("hha/*/train/*/*.png"))[number]
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.fixture
def own(config, scenes, tmp_path):
    """The config on a copy of the scenes that a test may spoil."""
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    return replace(config, data=replace(config.data, root=root, cache=False))


@pytest.mark.fault("F6")
def test_a_damaged_sample_is_skipped_told_and_counted(own, fit, losses, capsys):
    victim = spoil(own.data.root, 5)
    with pytest.raises(DataError, match="is damaged"):
        fit(replace(own, name="strict"))
    skipping = replace(own, data=replace(own.data, damaged="skip"))
    path, done = fit(skipping)
    assert done
    said = capsys.readouterr().err
    line = f"a training sample is skipped, and the next one taken: {victim} is damaged"
    assert said.count(line) == 1
    rows = [json.loads(row) for row in (path / "metrics.jsonl").read_text().splitlines()]
    counts = [row["replaced_samples"] for row in rows if row["kind"] == "train"]
    assert 1 <= sum(counts) <= 10  # two stages of five steps

    # stopped and resumed, on the same samples
    again = replace(skipping, name="again", stop_after=3)
    while not fit(again)[1]:
        pass
    assert losses(path) == losses(own.out / "again")


def test_a_run_that_met_damage_may_go_on_without_it(own, fit):
    spoil(own.data.root, 3)
    with pytest.raises(DataError, match="is damaged"):
        fit(own)
    assert fit(replace(own, data=replace(own.data, damaged="skip")))[1]


def test_too_many_damaged_samples_stop_the_run(own, fit):
    for number in (2, 5, 8):
        spoil(own.data.root, number)
    with pytest.raises(DataError, match=r"2 of 12 training samples .*--data\.damaged-limit"):
        fit(replace(own, data=replace(own.data, damaged="skip")))


def test_what_other_processes_met_counts_at_the_next_logged_step(own, fit, monkeypatch):
    skipping = replace(own, log_every=2, data=replace(own.data, damaged="skip"))
    monkeypatch.setattr(Ranks, "union", lambda self, values: {10, 11})
    with pytest.raises(DataError, match=r"2 of 12 training samples .* Other processes met them"):
        fit(replace(skipping, name="unharmed"))

    spoil(own.data.root, 2)
    met = []

    def with_another(self, values):
        met.append(list(values))
        return {*values, 11}

    monkeypatch.setattr(Ranks, "union", with_another)
    with pytest.raises(DataError, match=r"2 of 12 training samples .* The last one: .*damaged"):
        fit(skipping)
    assert met[-1] == [2]
    assert all(values == [] for values in met[:-1])


@pytest.mark.fault("F29")
@pytest.mark.parametrize("change", ["gone", "new"])
def test_other_samples_may_be_allowed(own, fit, capsys, change):
    assert not fit(replace(own, stop_after=2))[1]
    scene = sorted(own.data.root.glob("hha/*/train/*"))[-1].relative_to(own.data.root / "hha")
    for folder in own.data.root.glob(f"*/{scene}"):
        if change == "new":
            shutil.copytree(folder, folder.with_name(f"{folder.name}9"))
        else:
            shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"not those that .*--fresh.*--allow-data-change"):
        fit(own)
    assert fit(replace(own, allow_data_change=True))[1]
    assert "continuing on the others, as --allow-data-change says" in capsys.readouterr().err
    written = json.loads((own.out / own.name / "config.json").read_text())
    assert written["allow_data_change"] is False


@pytest.mark.fault("F26")
def test_few_samples_train_if_repeated(own, fit):
    data = replace(own.data, batch_size=16)
    with pytest.raises(DataError, match=r"12 training samples are fewer .* --data\.repeat"):
        fit(replace(own, data=data))
    assert fit(replace(own, data=replace(data, repeat=True)))[1]


def test_labels_with_nothing_to_teach_are_told_before_training(own, fit, capsys):
    for path in own.data.root.glob("semantic/*/train/*/*.png"):
        Image.new("RGB", (64, 64), (0, 0, 142)).save(path)
    fit(replace(own, stop_after=1))
    said = capsys.readouterr().err
    assert said.count("warning: split 'train': every pixel is ignored in all 12 labels") == 1
    assert "split 'val'" not in said


def rewrite(root: Path, more: bytes = b"") -> None:
    """Write a training file again, with more bytes behind its content."""
    path = sorted(root.glob("hha/*/train/*/*.png"))[4]
    before = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes() + more)
    os.utime(path, ns=(before + 10**9, before + 10**9))


@pytest.mark.fault("F29")
@pytest.mark.parametrize("packed", [False, True])
def test_changed_pixels_under_the_same_names_are_noticed(own, fit, capsys, packed):
    if packed:
        for split in ("train", "val"):
            files = list_split(get_dataset("deliver"), own.data.root, split)
            pack_split(files, own.data.root / "packed/deliver" / split, workers=1, progress=False)
    assert not fit(replace(own, stop_after=2))[1]
    rewrite(own.data.root, b"\0" * 8)
    with pytest.raises(ConfigError, match=r"have files of other sizes than .*--allow-data-change"):
        fit(own)
    allowed = replace(own, allow_data_change=True, stop_after=1)
    assert not fit(allowed)[1]
    assert not fit(replace(own, stop_after=1))[1]  # the state is of the others now
    assert "were copied or rewritten" not in capsys.readouterr().err


def test_copied_files_are_a_warning(own, fit, capsys):
    assert not fit(replace(own, stop_after=2))[1]
    rewrite(own.data.root)
    assert not fit(replace(own, stop_after=1))[1]
    assert "warning: training files under" in capsys.readouterr().err
    assert not fit(replace(own, stop_after=1))[1]
    assert "warning: training files under" not in capsys.readouterr().err


def test_states_that_know_only_names_resume() -> None:
    facts = DataFacts("names", "sizes", "times")
    assert facts.changed({"fingerprint": "names"}) is None
    assert not facts.touched({"fingerprint": "names"})
    assert facts.changed({"fingerprint": "others"}) == "are not those"
    old = {"fingerprint": "names", "file_sizes": "sizes", "file_times": "others"}
    assert facts.changed(old) is None
    assert facts.touched(old)


def reshaped(root: Path, parts: str = "*") -> None:
    """Half the height for files of the last validation sample."""
    scene = sorted(root.glob("img/*/val/*/*.png"))[-1]
    frame, place = scene.name.split("_")[0], scene.parent.relative_to(root / "img")
    for path in root.glob(f"{parts}/{place}/{frame}_*.png"):
        pixels = np.array(Image.open(path))
        Image.fromarray(pixels[: len(pixels) // 2]).save(path)


def test_a_validation_file_of_another_size_ends_the_run_before_its_first_step(own, fit):
    reshaped(own.data.root, "hha")
    with pytest.raises(DataError, match=r"is 64 x 32 pixels, its label is 64 x 64"):
        fit(own)
    assert not (own.out / own.name / "checkpoints").exists()
    assert not (own.out / own.name / "metrics.jsonl").exists()


def test_validation_images_of_several_shapes_are_scored(own, fit):
    reshaped(own.data.root)
    path, done = fit(own)
    assert done
    rows = [json.loads(row) for row in (path / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "eval" for row in rows) == 4  # two stages, full set and mean
    limited = replace(own, name="limited", evaluation=replace(own.evaluation, samples=4))
    assert fit(limited)[1]
