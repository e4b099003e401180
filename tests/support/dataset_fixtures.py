"""Fixtures: tiny copies of the data sets, which each test may spoil, and loaders to be closed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastseg.pipelines import DataConfig, Loader, build_loader
from tests.support import dataset_trees as trees


@pytest.fixture(scope="session")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable], Path]:
    roots: dict[Callable, Path] = {}

    def once(write: Callable[[Path], Path]) -> Path:
        if write not in roots:
            roots[write] = write(tmp_path_factory.mktemp("tree"))
        return roots[write]

    return once


@pytest.fixture
def deliver_tree(written_once: Callable[[Callable], Path], tmp_path: Path) -> Path:
    """16 training and 6 validation samples of 64 x 64 pixels; the root is named like a filter."""
    return Path(shutil.copytree(written_once(trees.write_deliver), tmp_path / "rain_sun_demo"))


@pytest.fixture
def mcubes_tree(written_once: Callable[[Callable], Path], tmp_path: Path) -> Path:
    """4, 2 and 2 samples of 32 x 256 pixels, of which 64 columns remain."""
    return Path(shutil.copytree(written_once(trees.write_mcubes), tmp_path / "mcubes"))


@pytest.fixture
def muses_tree(written_once: Callable[[Callable], Path], tmp_path: Path) -> Path:
    """6 training and 4 validation scenes of 64 x 96 pixels, projected."""
    return Path(shutil.copytree(written_once(trees.write_muses_projected), tmp_path / "muses"))


@pytest.fixture
def raw_tree(written_once: Callable[[Callable], Path], tmp_path: Path) -> Path:
    """The same scenes as they are downloaded."""
    pytest.importorskip("h5py")
    return Path(shutil.copytree(written_once(trees.write_muses_raw), tmp_path / "raw"))


@pytest.fixture
def add_sample() -> Callable[..., None]:
    """Adds one DELIVER sample of a given side to a tree."""
    return trees.write_deliver_sample


@pytest.fixture
def open_loader() -> Iterator[Callable[..., Loader]]:
    """``build_loader`` whose results are closed at the end of the test."""
    opened = []

    def open_one(config: DataConfig, **options: object) -> Loader:
        opened.append(build_loader(config, **options))
        return opened[-1]

    yield open_one
    for loader in opened:
        loader.close()
