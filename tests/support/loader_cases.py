"""For tests that hold for both loaders: their names, what they evaluate, caches to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fastseg.pipelines import Batch, CorruptionConfig, DataConfig, Loader, get_dataset
from fastseg.pipelines.cache.read import packed_folder
from fastseg.pipelines.cache.write import pack_split
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.loaders.dali.loader import dali_import_error

needs_dali = pytest.mark.skipif(dali_import_error() is not None, reason="DALI is not installed")
LOADERS = ["torch", pytest.param("dali", marks=needs_dali)]
Open = Callable[..., Loader]


def corrupted(config: DataConfig, **settings: object) -> DataConfig:
    """The config with faults in evaluation."""
    return replace(config, eval_corruption=CorruptionConfig(**settings))


def evaluated(config: DataConfig, open_loader: Open) -> Batch:
    """The first batch of evaluation."""
    return next(open_loader(config, train=False).batches())


def pack_all(root: Path, dataset: str = "deliver", missing: str = "error") -> Path:
    """Write the decoded caches of a tree beside it; the folder that holds them."""
    spec = get_dataset(dataset)
    folder = packed_folder(root, spec)
    for split in ("train", "val"):
        files = list_split(spec, root, split, missing=missing)
        pack_split(files, folder / split, workers=1, progress=False)
    return folder
