"""The published sizes of foundation backbones, as far as shapes and costs depend on them.

Sources: DINOv2, arXiv:2304.07193, table 17; DINOv3, arXiv:2508.10104, table 2; the ``config.json``
of their releases for transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Size:
    """One published backbone.

    Attributes:
        model_type: that of its ``config.json``.
        width: channels of a token.
        depth: transformer blocks.
        heads: attention heads.
        more: further entries of its config.
    """

    model_type: str
    width: int
    depth: int
    heads: int
    more: Mapping[str, object] = field(default_factory=dict)

    def entries(self) -> dict[str, object]:
        """Entries of a config of transformers."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            **self.more,
        }


_V2, _V3 = {"image_size": 518, "patch_size": 14}, {"num_register_tokens": 4, "key_bias": False}

SIZES = {
    "dinov2_small": Size("dinov2", 384, 12, 6, _V2),
    "dinov2_base": Size("dinov2", 768, 12, 12, _V2),
    "dinov2_large": Size("dinov2", 1024, 24, 16, _V2),
    "dinov2_giant": Size("dinov2", 1536, 40, 24, {**_V2, "use_swiglu_ffn": True}),
    "dinov3_small": Size("dinov3_vit", 384, 12, 6, {**_V3, "intermediate_size": 1536}),
    "dinov3_base": Size("dinov3_vit", 768, 12, 12, {**_V3, "intermediate_size": 3072}),
    "dinov3_large": Size("dinov3_vit", 1024, 24, 16, {**_V3, "intermediate_size": 4096}),
}
"""By name of the backbone; DINOv2 has the same sizes with register tokens."""

ANY_SIZE = {"dinov2": "dinov2", "dinov3": "dinov3_vit"}
"""Names of backbones of the size that their folder has, with their model type."""

NAMES = (*SIZES, *ANY_SIZE)
"""All names of backbones."""
