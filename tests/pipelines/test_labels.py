"""Labels that are painted in colours, and splits whose labels have nothing to teach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trees
from both import LOADERS, Open

from fastseg.pipelines import DataConfig, DataError, get_dataset
from fastseg.pipelines.catalogue import DATASETS
from fastseg.pipelines.check import CheckReport, check_dataset
from fastseg.pipelines.decode import decode_label

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
