"""The data set and the loaders that the benchmark of the input pipeline is tested on."""

from tests.support.dataset_fixtures import deliver_tree, open_loader, written_once

__all__ = ["deliver_tree", "open_loader", "written_once"]
