"""Foundation encoders by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..registry import register_backbone
from .folder import read_base
from .segmenter import FoundationSegmenter
from .sizes import NAMES

EMBED_DIM = 256
"""Width of the head that `fastseg.models.build_segmenter` takes by default."""


def build_foundation(
    backbone: str, num_classes: int, modalities: Sequence[str], *, embed_dim: int,
    dropout: float, drop_path: float = 0.0, norm_momentum: float = 0.1, fusion: str = "mean",
    foundation: Path | None = None, adapter_rank: int = 8, pyramid_width: int = 256,
    train_foundation: bool = False,
) -> FoundationSegmenter:  # fmt: skip
    """A segmenter on the backbone in a local folder; ``drop_path`` has no meaning for it.

    Args:
        backbone: ``dinov2``, ``dinov3`` (of any size), or with a size, such as ``dinov2_small``.
        num_classes: K.
        modalities: names of the M modalities of the run.
        embed_dim: width of the head.
        dropout: probability that a channel before the classifier is dropped in training.
        drop_path: ignored.
        norm_momentum: share of the newest batch in BatchNorm statistics.
        fusion: a name in `fastseg.models.fusion.FUSIONS`.
        foundation: the folder.
        adapter_rank: rank of the adapters; 0: none.
        pyramid_width: channels of the levels of features.
        train_foundation: the backbone learns, too.

    Raises:
        ConfigError: the folder cannot be used, or transformers is missing.
    """
    folder = None if foundation is None else Path(foundation)
    return FoundationSegmenter(
        read_base(backbone, folder), folder, num_classes, modalities, embed_dim, dropout,
        norm_momentum, fusion, adapter_rank, pyramid_width, train_foundation,
    )  # fmt: skip


for _name in NAMES:
    register_backbone(_name, build_foundation, EMBED_DIM)
