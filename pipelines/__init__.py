"""Input pipelines: files on disk to training batches. Import as ``fastseg.pipelines``."""

from .batch import Batch, Loader
from .build import build_loader
from .catalogue import get_dataset
from .config import CorruptionConfig, DataConfig
from .errors import DataError
from .spec import DatasetSpec, ModalitySpec

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
