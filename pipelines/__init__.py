"""Input pipelines: files on disk to training batches. Import as ``fastseg.pipelines``."""

from .batch import Batch, Loader
from .build import build_loader
from .config import DataConfig
from .datasets import get_dataset
from .errors import DataError
from .spec import DatasetSpec, ModalitySpec

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "DatasetSpec",
    "Loader",
    "ModalitySpec",
    "build_loader",
    "get_dataset",
]
