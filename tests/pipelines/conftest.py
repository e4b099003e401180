"""The fixtures of every room of the pipelines."""

from tests.support.dataset_fixtures import (
    add_sample,
    deliver_tree,
    mcubes_tree,
    muses_tree,
    open_loader,
    raw_tree,
    written_once,
)

__all__ = [
    "add_sample",
    "deliver_tree",
    "mcubes_tree",
    "muses_tree",
    "open_loader",
    "raw_tree",
    "written_once",
]
