"""Input pipelines: files on disk to training batches. Import as ``fastseg.pipelines``."""

from typing import TYPE_CHECKING, Any

from .batch import Batch
from .config import CorruptionConfig, DataConfig
from .datasets.catalogue import get_dataset
from .datasets.spec import DatasetSpec, ModalitySpec
from .errors import DataError
from .loaders.interface import Loader

if TYPE_CHECKING:
    from .build import build_loader

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


def __getattr__(name: str) -> Any:
    # a step needs batches, but not what reads them from files
    if name == "build_loader":
        from .build import build_loader

        return build_loader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
