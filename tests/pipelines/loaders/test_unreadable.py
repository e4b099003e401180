"""Training samples that cannot be read: others take their places, the same ones everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.pipelines import CorruptionConfig, DataConfig, DataError, Loader, get_dataset
from fastseg.pipelines.cache.read import packed_folder
from fastseg.pipelines.cache.write import pack_split
from fastseg.pipelines.datasets.split_files import list_split, scan_split
from fastseg.pipelines.loaders.dali.loader import dali_import_error
from fastseg.pipelines.loaders.order import TrainOrder
from tests.support import dataset_trees as trees
from tests.support.loader_cases import LOADERS, Open, needs_dali

WAYS = {
    "in line": {},
    "processes": {"workers": 2},
    "threads": {"workers": 2, "cache": True},
    "dali": {"loader": "dali", "workers": 0},
    "dali, ahead": {"loader": "dali", "workers": 2},
}


@pytest.fixture
def config(deliver_tree: Path) -> DataConfig:
    return DataConfig(
        root=deliver_tree,
        size=64,
        batch_size=3,
        eval_batch_size=4,
        workers=0,
        loader="torch",
        damaged="skip",
        damaged_limit=0.4,  # six of 16
        scale=(1, 1),
    )


def a_file(config: DataConfig, index: int, modality: int = 0) -> Path:
    files, _ = scan_split(get_dataset(config.dataset), config.root, "train")
    return files.path(index, files.modalities[modality].files[0])


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def recolour(path: Path) -> None:
    trees.save(Path(str(path).replace("/img/", "/semantic/").replace("_rgb_", "_semantic_")), GREY)


GREY = np.full((64, 64), 77, np.uint8)
SPOILERS: dict[str, Callable[[Path], None]] = {
    "cut off": tear,
    "a byte changed": flip_a_byte,
    "gone": Path.unlink,
    "no image": lambda path: path.write_text("<html>404</html>"),
    "size": lambda path: Image.fromarray(GREY[:32]).save(path),
    "depth": lambda path: trees.save(path, GREY.astype(np.uint16)),
    "label": recolour,
}


Seen = dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]


def contents(loader: Loader, steps: range) -> Seen:
    """Images and label of every sample by epoch and id."""
    found = {}
    for step, batch in zip(steps, loader.batches(steps.start, steps.stop), strict=True):
        for b, name in enumerate(batch.sample_ids):
            epoch = step // loader.steps_per_epoch
            found[epoch, name] = batch.images[:, b].clone(), batch.labels[b].clone()
    return found


def expected_ids(order: TrainOrder, step: int, ids: tuple[str, ...], bad: set[str]) -> list[str]:
    epoch, indices = order.at(step)
    chosen = []
    for index in indices:
        while ids[index] in bad:
            index = order.following(epoch, index)
        chosen.append(ids[index])
    return chosen


def test_the_following_sample_is_the_next_of_the_epoch() -> None:
    order = TrainOrder(7, 1, seed=3)
    for epoch in range(3):
        drawn = [order.at(epoch * 7 + step)[1][0] for step in range(7)]
        assert [order.following(epoch, index) for index in drawn] == [*drawn[1:], drawn[0]]


@pytest.mark.fault("F6")
@pytest.mark.parametrize(
    ("how", "way"),
    [(how, way) for how in SPOILERS for way in ("in line", "dali")]
    + [("cut off", way) for way in ("processes", "threads", "dali, ahead")],
)
def test_the_next_sample_takes_the_place(
    config: DataConfig, open_loader: Open, how: str, way: str
) -> None:
    if "dali" in way and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    steps = range(10)  # two epochs
    intact = contents(open_loader(config, train=True, seed=5), steps)
    loader = open_loader(replace(config, **WAYS[way]), train=True, seed=5)
    ids = list_split(get_dataset("deliver"), config.root, "train").sample_ids
    order = TrainOrder(16, 3, 5)
    second = order.following(0, order.at(1)[1][0])  # two in a row
    bad = {ids[order.at(1)[1][0]], ids[second], ids[order.at(4)[1][2]]}
    for name in bad:
        SPOILERS[how](a_file(config, ids.index(name)))
    replaced = 0
    for step, batch in zip(steps, loader.batches(0, 10), strict=True):
        assert list(batch.sample_ids) == expected_ids(order, step, ids, bad)
        for b, name in enumerate(batch.sample_ids):
            if (step // 5, name) in intact:
                images, labels = intact[step // 5, name]
                assert torch.equal(batch.images[:, b], images)
                assert torch.equal(batch.labels[b], labels)
        planned = [ids[index] for index in order.at(step)[1]]
        assert len(batch.replaced) == sum(name in bad for name in planned)
        stems = [name.rpartition("/")[0] for name in bad]
        assert all(any(stem in reason for stem in stems) for reason in batch.replaced)
        replaced += len(batch.replaced)
    assert replaced >= 3


@pytest.mark.parametrize("way", ["in line", "dali"])
def test_processes_and_resumed_runs_see_the_same(
    config: DataConfig, open_loader: Open, way: str
) -> None:
    if way == "dali" and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    config = replace(config, batch_size=4, **WAYS[way])
    for index in (1, 6, 7):
        tear(a_file(config, index, modality=index % 4))
    options = {"train": True, "seed": 2}
    whole = list(open_loader(config, **options).batches(0, 8))
    resumed = open_loader(config, **options)
    for batch, again in zip(whole[5:], resumed.batches(5, 8), strict=True):
        assert batch.sample_ids == again.sample_ids
        assert torch.equal(batch.images, again.images)
    halves = [
        open_loader(replace(config, batch_size=2), rank=rank, world=2, **options).batches(0, 8)
        for rank in range(2)
    ]
    for batch, left, right in zip(whole, *halves, strict=True):
        assert [*batch.sample_ids[::2], *batch.sample_ids[1::2]] == [
            *left.sample_ids,
            *right.sample_ids,
        ]
        together = torch.cat([left.images, right.images], dim=1)
        assert torch.equal(batch.images[:, [0, 2, 1, 3]], together)
        assert sorted(batch.replaced) == sorted((*left.replaced, *right.replaced))


@pytest.mark.fault("F6")
@pytest.mark.parametrize("way", WAYS)
def test_too_many_stop_the_run(config: DataConfig, open_loader: Open, way: str) -> None:
    if "dali" in way and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    config = replace(config, damaged_limit=0.001, **WAYS[way])  # one of 16
    loader = open_loader(config, train=True)
    paths = [a_file(config, index) for index in (9, 12)]
    tear(paths[0])
    assert sum(len(batch.replaced) for batch in loader.batches(0, 5)) <= 1
    tear(paths[1])
    other = open_loader(config, train=True)
    with pytest.raises(DataError, match=r"2 of 16 .* --data\.damaged-limit 0\.001") as caught:
        list(other.batches(0, 15))
    assert any(str(path) in str(caught.value) for path in paths)
    assert "python -m fastseg.data check" in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_when_everything_is_gone_the_run_stops(
    config: DataConfig, open_loader: Open, way: str
) -> None:
    if "dali" in way and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    loader = open_loader(replace(config, damaged_limit=0.99, **WAYS[way]), train=True)
    for path in config.root.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="of 16 training samples cannot be read"):
        list(loader.batches(0, 20))


def test_a_bad_first_sample_does_not_stop_a_run(config: DataConfig, open_loader: Open) -> None:
    tear(a_file(config, 0))
    assert len(list(open_loader(config, train=True).batches(0, 5))) == 5
    with pytest.raises(DataError, match="is damaged"):
        open_loader(replace(config, damaged="error"), train=True)


@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_never_replaces(config: DataConfig, open_loader: Open, loader: str) -> None:
    opened = open_loader(replace(config, loader=loader), train=False)
    files = list_split(get_dataset("deliver"), config.root, "val")
    victim = files.path(4, files.modalities[0].files[0])
    tear(victim)
    with pytest.raises(DataError, match="is damaged") as caught:
        list(opened.batches())
    assert str(victim) in str(caught.value)


@pytest.mark.parametrize("loader", LOADERS)
def test_packed_samples_are_replaced_too(
    config: DataConfig, open_loader: Open, loader: str
) -> None:
    spec = get_dataset("deliver")
    files = list_split(spec, config.root, "train")
    folder = packed_folder(config.root, spec) / "train"
    pack_split(files, folder, workers=1, progress=False)
    intact = contents(open_loader(config, train=True), range(5))
    arrays = folder / "00000.bin"
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    opened = open_loader(replace(config, loader=loader, workers=2), train=True)
    assert "packed" in opened.reason
    replaced = [m for batch in opened.batches(0, 10) for m in batch.replaced]
    assert 1 <= len(replaced) <= 2
    assert all("have changed; run python -m fastseg.data pack" in m for m in replaced)
    again = contents(opened, range(5))
    for key in intact.keys() & again.keys():
        assert torch.equal(intact[key][0], again[key][0])


@needs_dali
def test_a_frozen_sensor_does_not_spread_damage(config: DataConfig, open_loader: Open) -> None:
    frozen = replace(config, corruption=CorruptionConfig(freeze=1.0))
    for index in (1, 5):
        tear(a_file(config, index, modality=3))
    ours, theirs = (
        list(open_loader(replace(frozen, loader=name), train=True).batches(0, 10))
        for name in ("torch", "dali")
    )
    bad = {list_split(get_dataset("deliver"), config.root, "train").sample_ids[i] for i in (1, 5)}
    for a, b in zip(ours, theirs, strict=True):
        assert a.sample_ids == b.sample_ids
        assert not bad & set(a.sample_ids)
        assert torch.equal(a.images, b.images)


# --- files that are missing from the start -------------------------------------------------------


@pytest.mark.fault("F5")
def test_incomplete_samples_can_be_left_out(config: DataConfig, open_loader: Open) -> None:
    whole = open_loader(config, train=True)
    for index, modality in ((2, 0), (2, 1), (9, 3)):
        a_file(config, index, modality).unlink()
    files = list_split(get_dataset("deliver"), config.root, "train", missing="skip")
    assert (len(files), files.left_out) == (14, 2)
    skipping = replace(config, missing="skip")
    loader = open_loader(skipping, train=True)
    assert loader.num_samples == 14
    assert "2 samples of split train are left out, as files are missing" in loader.reason
    assert loader.fingerprint not in ("", whole.fingerprint)
    with pytest.raises(DataError, match=r"(?s)3 files .* --data\.missing skip"):
        open_loader(config, train=True)


def test_scores_are_of_whole_splits(config: DataConfig, open_loader: Open) -> None:
    min(config.root.glob("img/*/val/*/*.png")).unlink()
    with pytest.raises(DataError, match=r"1 files of split 'val' are missing \(img: 1 of 6"):
        open_loader(replace(config, missing="skip"), train=False)


def test_a_modality_without_any_file_is_no_gap_to_skip(
    config: DataConfig, open_loader: Open
) -> None:
    for path in config.root.glob("event/*/train/*/*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"event: 16 of 16"):
        open_loader(replace(config, missing="skip"), train=True)


# --- fewer samples than a batch ------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> DataConfig:
    """A root with three training and three evaluation samples."""
    for split in ("train", "val"):
        for frame in range(3):
            trees.write_deliver_sample(tmp_path, "sun", split, "MAP_1_point1", f"{frame:06d}")
    return DataConfig(root=tmp_path, size=64, batch_size=4, workers=0, loader="torch")


@pytest.mark.fault("F26")
@pytest.mark.parametrize("loader", LOADERS)
def test_few_samples_can_be_repeated(three: DataConfig, open_loader: Open, loader: str) -> None:
    three = replace(three, loader=loader)
    with pytest.raises(DataError, match=r"batch-size to at most 1, .* --data\.repeat") as caught:
        open_loader(three, train=True, world=2)
    assert "3 training samples are fewer than one global batch of 8 (4 x 2 processes)" in str(
        caught.value
    )
    repeating = replace(three, repeat=True)
    ranks = [open_loader(repeating, train=True, rank=rank, world=2) for rank in range(2)]
    assert [r.steps_per_epoch for r in ranks] == [1, 1]
    assert "each sample up to 3 times in a batch" in ranks[0].reason
    for left, right in zip(*(rank.batches(0, 4) for rank in ranks), strict=True):
        names = [*left.sample_ids, *right.sample_ids]
        assert sorted(names.count(name) for name in set(names)) == [2, 3, 3]
        # each time with draws of its own
        images = torch.cat([left.images, right.images], dim=1).transpose(0, 1)
        assert len({image.numpy().tobytes() for image in images}) > 5
    alone = open_loader(replace(repeating, batch_size=8), train=True)
    assert alone.fingerprint == ranks[0].fingerprint
    assert set(next(alone.batches()).sample_ids) == {
        f"sun/train/MAP_1_point1/00000{i}" for i in range(3)
    }


def test_repeat_changes_nothing_where_there_are_enough(
    config: DataConfig, open_loader: Open
) -> None:
    plain = open_loader(config, train=True)
    repeating = open_loader(replace(config, repeat=True), train=True)
    assert (plain.fingerprint, plain.steps_per_epoch) == (
        repeating.fingerprint,
        repeating.steps_per_epoch,
    )
    assert plain.reason == repeating.reason


@pytest.mark.fault("F26")
@pytest.mark.parametrize("loader", LOADERS)
def test_few_samples_are_evaluated_on_more_processes(
    three: DataConfig, open_loader: Open, loader: str
) -> None:
    seen = [
        name
        for rank in range(4)
        for batch in open_loader(
            replace(three, loader=loader), train=False, rank=rank, world=4
        ).batches()
        for name in batch.sample_ids
    ]
    assert sorted(seen) == [f"sun/val/MAP_1_point1/00000{i}" for i in range(3)]


@pytest.mark.parametrize("value", [0, 1, -0.1])
def test_senseless_limits(value: float) -> None:
    with pytest.raises(ValueError, match="damaged_limit must be between 0 and 1"):
        DataConfig(damaged_limit=value)
