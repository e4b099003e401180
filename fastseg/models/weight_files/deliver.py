"""Names of the second branch of CMNeXt and CMX in the released code.

They are those of github.com/jamycheung/DELIVER: ``backbone.`` is the encoder, ``decode_head.`` the
head. Two 1x1 convolutions of each pooling mixer are linear layers here: their kernels change shape.
Modalities keep their order, so that of the hub comes first there. Released weights belong to a
model with ``scramble=True``.
"""

from __future__ import annotations

import re

_NAMES = {
    r"rectify\.": "backbone.FRMs.",
    r"fuse\.": "backbone.FFMs.",
    # CMNeXt: pooling mixers behind a selection
    r"auxiliary\.embeds\.(\d)\.proj": r"backbone.extra_downsample_layers.\1.proj.module",
    r"auxiliary\.embeds\.(\d)\.norms\.": r"backbone.extra_downsample_layers.\1.norm.ln_",
    r"auxiliary\.hubs\.(\d)\.scores": r"backbone.extra_score_predictor.\1.score_nets",
    r"auxiliary\.blocks\.(\d)\.(\d+)\.gate": r"backbone.extra_block{0}.\2.c_nets.0",
    r"auxiliary\.blocks\.(\d)\.": r"backbone.extra_block{0}.",
    r"auxiliary\.norms\.(\d)": r"backbone.extra_norm{0}",
    # CMX: another Mix Transformer
    r"auxiliary\.(?=patch_embed|block\d|norm\d)": "backbone.extra_",
}
KERNELS = r"auxiliary\.blocks\.\d\.\d+\.mlp\.fc\d\.weight"
"""Names here of the linear layers that are convolutions there."""


def second_branch(key: str) -> str | None:
    """Name in the released code of a tensor behind the first branch; None if there is none."""
    for pattern, name in _NAMES.items():
        if match := re.match(pattern, key):
            level = int(match[1]) + 1 if "{0}" in name else 0
            return match.expand(name).format(level) + key[match.end() :]
    return None
