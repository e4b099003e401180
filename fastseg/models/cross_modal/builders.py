"""CMNeXt and CMX as backbones of the registry: ``cmnext_b0`` to ``cmnext_b5``, ``cmx_b0`` ..."""

from __future__ import annotations

from collections.abc import Sequence

from ..backbones.mit import get_backbone
from ..registry import register_backbone
from .hub import HubSelection
from .segmenter import CrossModalSegmenter

SIZES = ("nano", "b0", "b1", "b2", "b3", "b4", "b5")
SMALL = ("nano", "b0", "b1")
"""Those whose published heads are narrower."""


def build_cmnext(
    backbone: str, num_classes: int, modalities: Sequence[str], *, embed_dim: int,
    dropout: float, drop_path: float, norm_momentum: float, hub: str | None = None,
    hub_selection: HubSelection = "self_query", scramble: bool = False,
) -> CrossModalSegmenter:  # fmt: skip
    """CMNeXt for any number of modalities; of one it is SegFormer."""
    return CrossModalSegmenter(
        get_backbone(backbone.replace("cmnext", "mit")), num_classes, modalities, embed_dim,
        dropout=dropout, drop_path=drop_path, norm_momentum=norm_momentum, hub=hub,
        hub_selection=hub_selection, scramble=scramble,
    )  # fmt: skip


def build_cmx(
    backbone: str, num_classes: int, modalities: Sequence[str], *, embed_dim: int,
    dropout: float, drop_path: float, norm_momentum: float, hub: str | None = None,
) -> CrossModalSegmenter:  # fmt: skip
    """CMX for two modalities."""
    return CrossModalSegmenter(
        get_backbone(backbone.replace("cmx", "mit")), num_classes, modalities, embed_dim,
        second="mit", dropout=dropout, drop_path=drop_path, norm_momentum=norm_momentum, hub=hub,
    )  # fmt: skip


for _size in SIZES:
    register_backbone(f"cmnext_{_size}", build_cmnext, 256 if _size in SMALL else 512)
for _size in SIZES:
    register_backbone(f"cmx_{_size}", build_cmx, 256 if _size in SMALL else 512)
