"""What is looked at before an evaluation begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg.pipelines import DataConfig, DataError, Loader, get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.decode.headers import image_size
from tests.support import dataset_trees as trees
from tests.support.loader_cases import LOADERS


@pytest.fixture
def config(deliver_tree: Path) -> DataConfig:
    return DataConfig(root=deliver_tree, size=64, eval_batch_size=2, workers=0, loader="torch")


def last(config: DataConfig, folder: str) -> Path:
    return sorted(config.root.glob(f"{folder}/*/val/*/*.png"))[-1]


@pytest.mark.parametrize("name", LOADERS)
def test_sound_files_pass(
    config: DataConfig, open_loader: Callable[..., Loader], name: str
) -> None:
    loader = open_loader(replace(config, loader=name), train=False)
    loader.check()
    assert sum(len(batch.sample_ids) for batch in loader.batches()) == 6


@pytest.mark.fault("F10")
@pytest.mark.parametrize("name", LOADERS)
def test_an_image_of_another_size_is_named(
    config: DataConfig, open_loader: Callable[..., Loader], name: str
) -> None:
    victim = last(config, "hha")
    trees.save(victim, np.zeros((32, 64, 3)))
    loader = open_loader(replace(config, loader=name), train=False)
    with pytest.raises(DataError, match=rf"{victim} is 64 x 32 pixels, its label is 64 x 64"):
        loader.check()


def test_a_cut_file_is_named_by_the_process_that_would_read_it(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    victim = last(config, "lidar")
    victim.write_bytes(victim.read_bytes()[:-40])
    first, second = (open_loader(config, train=False, rank=rank, world=2) for rank in range(2))
    first.check()
    with pytest.raises(DataError, match=rf"{victim} is damaged"):
        second.check()


def test_the_first_labels_are_decoded(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    victim = sorted(config.root.glob("semantic/*/val/*/*.png"))[1]
    trees.save(victim, np.full((64, 64, 3), 77))
    with pytest.raises(DataError, match=rf"{victim}: label value 77"):
        open_loader(config, train=False).check()


@pytest.mark.fault("F10")
def test_arrays_and_mosaics_are_compared_with_their_label(
    mcubes_tree: Path, open_loader: Callable[..., Loader]
) -> None:
    config = DataConfig(dataset="mcubes", root=mcubes_tree, size=32, workers=0, loader="torch")
    open_loader(config, train=False).check()
    files = list_split(get_dataset("mcubes"), mcubes_tree, "val")
    arrays = [modality for modality in files.modalities if modality.decoder == "array"]
    victim = files.path(len(files) - 1, arrays[0].files[0])
    np.save(victim, np.load(victim)[:16])
    loader = open_loader(config, train=False)
    with pytest.raises(DataError, match=rf"{victim} is 64 x 16 pixels, its label is 64 x 32"):
        loader.check()


def test_a_long_header_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "long.jpg"
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(path, comment=b"x" * 60_000)
    data = path.read_bytes()
    start = data.index(b"\xff\xfe")
    comment = data[start : start + 4 + 60_000]
    path.write_bytes(data[:start] + 3 * comment + data[start:])
    assert image_size(path) == (16, 24)
