"""``python -m fastseg.data stats``: exact numbers, whatever the order."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg import data
from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.inspection.statistics import class_weights, measure
from tests.support import dataset_trees as trees


def measured(name: str, root: Path, split: str = "train", *modalities: str) -> dict:
    return measure(list_split(get_dataset(name), root, split, modalities), progress=False)


def test_eight_bit_codes(deliver_tree: Path) -> None:
    numbers = measured("deliver", deliver_tree)
    stack = np.stack(
        [np.array(Image.open(p))[..., :3] for p in deliver_tree.glob("img/*/train/*/*")]
    )
    img = numbers["modalities"]["img"]
    np.testing.assert_allclose(img["mean"], stack.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(img["std"], stack.std((0, 1, 2)) / 255, rtol=1e-12)
    assert img["pixels"] == 16 * 64 * 64
    # events are measured as stored, also where they are smaller than the label
    event = numbers["modalities"]["event"]
    small = 64 * 512 // 1042
    assert event["pixels"] == 12 * 64 * 64 + 4 * small * small
    assert (event["max"], event["min"], event["mean"][1], event["std"][1]) == (
        [1, 0, 1],
        [0] * 3,
        0,
        0,
    )
    assert 0.1 < event["filled"] < 0.18

    raw = np.concatenate(
        [np.array(Image.open(p))[..., 0].ravel() for p in deliver_tree.glob("semantic/*/train/*/*")]
    )
    assert list(numbers["classes"].values()) == [int((raw == i).sum()) for i in range(1, 26)]
    assert numbers["ignored"] == int(((raw == 0) | (raw == 255)).sum())
    assert numbers["classes"]["Building"] == int((raw == 1).sum())


def test_physical_units(muses_tree: Path) -> None:
    numbers = measured("muses", muses_tree, "val", "lidar", "event_camera")["modalities"]
    scenes = [scene for scene in trees.muses_scenes() if scene[0].startswith("val")]
    lidar = np.stack([trees.projections(*scene)["lidar"] for scene in scenes])
    np.testing.assert_allclose(numbers["lidar"]["mean"], lidar.mean((0, 1, 2)), atol=1 / 150)
    np.testing.assert_allclose(numbers["lidar"]["std"], lidar.std((0, 1, 2)), atol=1 / 150)
    assert numbers["lidar"]["filled"] == pytest.approx((lidar != 0).any(-1).mean(), abs=1e-9)
    events = np.stack([trees.projections(*scene)["event_camera"] for scene in scenes])
    np.testing.assert_allclose(numbers["event_camera"]["mean"], events.mean((0, 1, 2)), rtol=1e-12)
    assert numbers["event_camera"]["unit"] == "events"


def test_floats_without_the_cut_columns(mcubes_tree: Path) -> None:
    numbers = measured("mcubes", mcubes_tree)["modalities"]
    degree = np.stack([np.load(p) for p in mcubes_tree.glob("polL_dolp/*train*")])[..., 192:]
    dolp = numbers["dolp"]
    np.testing.assert_allclose(dolp["mean"], [degree.astype(float).mean()] * 3, rtol=1e-12)
    np.testing.assert_allclose(dolp["std"], [degree.astype(float).std()] * 3, rtol=1e-9)
    assert dolp["min"] == [float(degree.min())] * 3
    assert dolp["pixels"] == 4 * 32 * 64
    # 8- and 16-bit files of one modality are on one scale
    assert 0.49 < numbers["nir"]["mean"][0] < 0.51


def test_a_constant_has_no_deviation(mcubes_tree: Path) -> None:
    for path in mcubes_tree.glob("polL_dolp/*.npy"):
        np.save(path, np.full((32, 256), 0.1, np.float32))
    assert measured("mcubes", mcubes_tree, "val", "dolp")["modalities"]["dolp"]["std"] == [0, 0, 0]


@pytest.mark.parametrize("name", ["deliver", "mcubes"])
def test_order_and_processes_do_not_matter(
    deliver_tree: Path, mcubes_tree: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = list_split(
        get_dataset(name), deliver_tree if name == "deliver" else mcubes_tree, "train"
    )
    alone = measure(files, progress=False)
    reverse = replace(files, sample_ids=files.sample_ids[::-1])

    def each(function, items, processes):
        return pickle.loads(pickle.dumps([pickle.loads(pickle.dumps(function))(i) for i in items]))

    monkeypatch.setattr("fastseg.pipelines.inspection.statistics.each", each)
    other = measure(reverse, progress=False)
    assert json.dumps(other | {"fingerprint": ""}) == json.dumps(alone | {"fingerprint": ""})


def test_the_command_writes_one_file(
    deliver_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "stats.json"
    command = ["stats", "--root", str(deliver_tree), "--out", str(out), "--workers", "1"]
    assert data.main(command) == 0
    first = out.read_bytes()
    printed = capsys.readouterr().out
    assert "img: mean 0." in printed
    assert f"16 samples of train: {out}" in printed
    assert "  Truck: " in printed
    assert data.main(command) == 0
    assert out.read_bytes() == first
    assert [p.name for p in out.parent.iterdir()] == ["stats.json"]


def test_a_bad_file_ends_it(deliver_tree: Path, tmp_path: Path) -> None:
    path = min(deliver_tree.glob("hha/*/train/*/*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged"):
        measured("deliver", deliver_tree)
    out = tmp_path / "stats.json"
    assert data.main(["stats", "--root", str(deliver_tree), "--out", str(out)]) == 2
    assert not out.exists()


def test_weights_grow_as_classes_get_rare():
    pixels = [90, 9, 1, 0]
    weights = class_weights(pixels)
    assert weights == sorted(weights)
    assert sum(w * n for w, n in zip(weights, pixels, strict=True)) == pytest.approx(100, rel=1e-3)
    wanted = math.log(1.02 + 0.9) / math.log(1.02)
    assert weights[3] / weights[0] == pytest.approx(wanted, rel=1e-3)
    assert class_weights([5]) == [1]
    assert len(set(class_weights([0, 0]))) == 1
