"""For tests that hold for both loaders: their names, how they are opened, what they evaluate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fastseg.pipelines import Batch, CorruptionConfig, DataConfig, Loader
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
