"""Weights of CMNeXt and CMX under the names of the released code, and back.

Names are those of github.com/jamycheung/DELIVER: ``backbone.`` is the encoder, ``decode_head.`` the
head. Two 1x1 convolutions of each pooling mixer are linear layers here: their kernels change shape.
Modalities keep their order, so that of the hub comes first there. Released weights belong to a
model with ``scramble=True``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import CheckpointError, listed
from ..state_dicts import read_state_dict
from ..weights import LoadReport
from .pooling import PoolingBranch
from .segmenter import CrossModalSegmenter

_LAYOUT = "DELIVER"
_PREFIXES = {
    r"encoder\.": "backbone.",
    r"decoder\.": "decode_head.",
    r"rectify\.": "backbone.FRMs.",
    r"fuse\.": "backbone.FFMs.",
}
_POOLING = {
    r"auxiliary\.embeds\.(\d)\.proj": r"backbone.extra_downsample_layers.\1.proj.module",
    r"auxiliary\.embeds\.(\d)\.norms\.": r"backbone.extra_downsample_layers.\1.norm.ln_",
    r"auxiliary\.hubs\.(\d)\.scores": r"backbone.extra_score_predictor.\1.score_nets",
    r"auxiliary\.blocks\.(\d)\.(\d+)\.gate": r"backbone.extra_block{0}.\2.c_nets.0",
    r"auxiliary\.blocks\.(\d)\.": r"backbone.extra_block{0}.",
    r"auxiliary\.norms\.(\d)": r"backbone.extra_norm{0}",
}
_MIT = {r"auxiliary\.": "backbone.extra_"}
_LINEAR = re.compile(r"auxiliary\.blocks\.\d\.\d+\.mlp\.fc\d\.weight")


def published_name(key: str, second: str = "pooling") -> str:
    """Name in the released code of a tensor of `CrossModalSegmenter`.

    Args:
        key: name here.
        second: branch of the auxiliary modalities, ``pooling`` (CMNeXt) or ``mit`` (CMX).
    """
    for pattern, name in (_PREFIXES | (_POOLING if second == "pooling" else _MIT)).items():
        if match := re.match(pattern, key):
            level = int(match[1]) + 1 if "{0}" in name else 0
            return match.expand(name).format(level) + key[match.end() :]
    raise KeyError(key)


def to_published(model: CrossModalSegmenter) -> dict[str, Tensor]:
    """The state dict of a model with the names and shapes of the released code."""
    state, second = model.state_dict(), _second(model)
    return {
        published_name(key, second): value[..., None, None] if _LINEAR.fullmatch(key) else value
        for key, value in state.items()
    }


def from_published(model: CrossModalSegmenter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for ``model.load_state_dict`` from one with the released names.

    Args:
        model: gives names and shapes; it is not changed.
        state: tensors of the whole network, without the wrappers that training scripts add.

    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape or not finite.
    """
    second = _second(model)
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    problems: dict[str, list[str]] = {"missing": [], "of another shape": [], "not finite": []}
    for key, want in model.state_dict().items():
        name = published_name(key, second)
        used.add(name)
        if name not in state:
            problems["missing"].append(name)
            continue
        value = state[name]
        if _LINEAR.fullmatch(key) and value.shape[2:] == (1, 1):
            value = value[..., 0, 0]
        if value.shape != want.shape:
            problems["of another shape"].append(
                f"{name} {list(value.shape)} for {list(want.shape)}"
            )
        elif not torch.isfinite(value).all():
            problems["not finite"].append(name)
        found[key] = value
    problems["unexpected"] = [name for name in state if name not in used]
    if any(problems.values()):
        lines = [f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys]
        raise CheckpointError(
            f"these weights do not fit {type(model).__name__} with {len(model.modalities)} "
            "modalities; nothing was loaded\n  "
            + "\n  ".join(lines)
            + "\nbuild the model with the backbone, classes, modalities and embed_dim that they "
            "were trained with"
        )
    return found


def load_published(model: CrossModalSegmenter, path: str | Path) -> LoadReport:
    """Set a whole model from a file of released weights.

    Args:
        model: written to only if every tensor fits; with ``scramble=True`` where it is CMNeXt of
            three or more modalities.
        path: a safetensors file, or one saved by torch; no code of it runs.

    Raises:
        CheckpointError: the file is absent or damaged, or does not fit the model.
    """
    path = Path(path)
    try:
        found = from_published(model, read_state_dict(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    model.load_state_dict(found)
    return LoadReport(path, _LAYOUT, len(found), ())


def _second(model: CrossModalSegmenter) -> str:
    pooling = model.auxiliary is None or isinstance(model.auxiliary, PoolingBranch)
    return "pooling" if pooling else "mit"
