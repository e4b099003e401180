"""Labels that are painted in colours, and splits whose labels have nothing to teach."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastseg.pipelines import DataConfig, DataError, get_dataset
from fastseg.pipelines.cache.write import pack_split
from fastseg.pipelines.datasets.catalogue import DATASETS
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.decode.by_spec import decode_label
from fastseg.pipelines.inspection.check import CheckReport, check_dataset, summarise
from tests.support import dataset_trees as trees
from tests.support.loader_cases import LOADERS, Open

MUSES = get_dataset("muses")
IDS = np.random.default_rng(0).integers(0, 19, trees.FRAME, dtype=np.uint8)
SOLID = np.full_like(IDS, 255)


def check(name: str, root: Path, *splits: str) -> CheckReport:
    return check_dataset(get_dataset(name), root, splits, progress=False)


def config_for(root: Path, dataset: str, loader: str) -> DataConfig:
    return DataConfig(
        dataset=dataset,
        root=root,
        modalities=(get_dataset(dataset).modalities[0].name,),
        size=64,
        eval_batch_size=2,
        workers=0,
        loader=loader,
    )


def fill(root: Path, split: str, value: tuple[int, ...]) -> None:
    """Fill all labels of a split of DELIVER with one colour."""
    for path in root.glob(f"semantic/*/{split}/*/*.png"):
        trees.save(path, np.broadcast_to(np.array(value), (trees.SIDE, trees.SIDE, len(value))))


# --- painted labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [[IDS], [IDS] * 2, [IDS] * 3, [IDS] * 3 + [SOLID]])
def test_ids_in_all_channels_alike_are_read(tmp_path: Path, channels: list[np.ndarray]) -> None:
    path = trees.save(tmp_path / "a.png", np.dstack(channels).squeeze())
    np.testing.assert_array_equal(decode_label(path, MUSES), IDS)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channel", [1, 2])
def test_a_painted_label_is_refused(tmp_path: Path, channel: int, alpha: bool) -> None:
    channels = [IDS.copy() for _ in range(3)] + [SOLID] * alpha
    channels[channel][3, 5] += 1
    path = trees.save(tmp_path / "a.png", np.dstack(channels))
    with pytest.raises(DataError) as caught:
        decode_label(path, MUSES)
    colour = tuple(int(part[3, 5]) for part in channels[:3])
    for part in (str(path), "differ in 1 pixels", f"{colour} at row 3, column 5", "save the ids"):
        assert part in str(caught.value)
    assert caught.value.kind == "label"


def test_ids_lie_in_red_alone_in_deliver_alone() -> None:
    for name, spec in DATASETS.items():
        assert spec.label.red_alone == name.startswith("deliver")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_painted_label_is_named_by_loaders_and_check(
    muses_tree: Path, open_loader: Open, loader: str
) -> None:
    # black in red, and so nothing but road to who reads red alone
    painted = np.dstack([IDS * 0, IDS * 0, IDS + 1])
    opened = open_loader(config_for(muses_tree, "muses", loader), train=False)
    path = max(muses_tree.glob("gt_semantic/val/*/*/*.png"))
    trees.save(path, painted)
    with pytest.raises(DataError, match="is painted") as caught:
        list(opened.batches())
    (fault,) = check("muses", muses_tree).faults
    assert str(caught.value) == fault.message
    assert str(path) in fault.message


# --- splits with nothing to learn ----------------------------------------------------------------

VOID, CARS = (0, 0, 142, 255), (10, 7, 7, 255)


@pytest.mark.parametrize(
    ("colour", "words"),
    [(VOID, "every pixel is ignored"), (CARS, "Cars is the only class")],
    ids=["void", "one class"],
)
def test_a_split_without_two_classes_is_a_fault(
    deliver_tree: Path, colour: tuple[int, ...], words: str
) -> None:
    fill(deliver_tree, "train", colour)
    report = check("deliver", deliver_tree)
    (fault,) = report.faults
    assert (fault.kind, fault.split, fault.part) == ("label", "train", "label")
    for part in (
        f"split 'train': {words} in all 16 labels",
        "painted in colours",
        "--data.dataset",
    ):
        assert part in fault.message
    assert fault.message in summarise(report)


def test_withheld_test_labels_are_a_note(deliver_tree: Path) -> None:
    for folder in ("img", "hha", "event", "lidar", "semantic"):
        shutil.copytree(deliver_tree / folder / "fog/val", deliver_tree / folder / "fog/test")
    fill(deliver_tree, "test", VOID)
    report = check("deliver", deliver_tree)
    assert report.faults == []
    assert any("split 'test': every pixel is ignored" in note.message for note in report.notes)
    assert len(check("deliver", deliver_tree, "test").faults) == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_warns_of_a_split_without_two_classes(
    deliver_tree: Path, open_loader: Open, loader: str, packed: bool
) -> None:
    fill(deliver_tree, "train", VOID)
    spec, config = get_dataset("deliver"), config_for(deliver_tree, "deliver", loader)
    if packed:
        for split in ("train", "val"):
            folder = deliver_tree / "packed" / split
            pack_split(list_split(spec, deliver_tree, split), folder, progress=False)
        config = replace(config, packed=deliver_tree / "packed")
    train = open_loader(config, train=True)
    assert "split 'train': every pixel is ignored in all 16 labels" in train.warning
    assert open_loader(config, train=False).warning == ""


def test_a_label_that_cannot_be_read_does_not_hide_the_others(
    deliver_tree: Path, open_loader: Open
) -> None:
    fill(deliver_tree, "train", CARS)
    _, second, *_ = sorted(deliver_tree.glob("semantic/*/train/*/*.png"))
    second.write_bytes(b"")
    warning = open_loader(config_for(deliver_tree, "deliver", "torch"), train=True).warning
    assert "Cars is the only class in all 15 labels" in warning
