"""Input pipelines: files on disk to training batches. Import as ``fastseg.pipelines``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Batch
    from .build import build_loader
    from .config import CorruptionConfig, DataConfig
    from .datasets.lookup import get_dataset
    from .datasets.spec import DatasetSpec, ModalitySpec
    from .errors import DataError
    from .loaders.interface import Loader

__all__ = [
    "Batch",
    "CorruptionConfig",
    "DataConfig",
    "DataError",
    "DatasetSpec",
    "Loader",
    "ModalitySpec",
    "build_loader",
    "get_dataset",
]

_PLACES = {
    "Batch": "batch",
    "CorruptionConfig": "config",
    "DataConfig": "config",
    "DataError": "errors",
    "DatasetSpec": "datasets.spec",
    "Loader": "loaders.interface",
    "ModalitySpec": "datasets.spec",
    "build_loader": "build",
    "get_dataset": "datasets.lookup",
}


def __getattr__(name: str) -> Any:
    # who wants a tool does without torch, and a step without what reads batches from files
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
