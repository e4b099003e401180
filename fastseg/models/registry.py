"""The models by name of their backbone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..errors import ConfigError
from ..pipelines.tools.unknown import unknown
from .backbones.mit import BACKBONES
from .interface import Segmenter
from .segformer import SegFormer


class Builder(Protocol):
    """Makes a model with random weights, drawn from torch's generator, on the CPU.

    One may have keywords of `OPTIONAL`, too.
    """

    def __call__(
        self,
        backbone: str,
        num_classes: int,
        modalities: Sequence[str],
        *,
        embed_dim: int,
        dropout: float,
        drop_path: float,
        norm_momentum: float,
    ) -> Segmenter:
        """Build it.

        Args:
            backbone: name under which the model is registered.
            num_classes: K.
            modalities: names of the M modalities of the run.
            embed_dim: width of the head.
            dropout: probability that a channel before the classifier is dropped in training.
            drop_path: stochastic depth of the encoder's last block.
            norm_momentum: share of the newest batch in BatchNorm statistics.
        """
        ...


OPTIONAL: dict[str, object] = {"encoders": "shared", "fusion": "mean"}
"""Keywords that a builder may have, with the value that stands for a model without them."""


def _segformer(
    backbone: str, num_classes: int, modalities: Sequence[str], *, embed_dim: int,
    dropout: float, drop_path: float, norm_momentum: float, encoders: str = "shared",
    fusion: str = "mean",
) -> Segmenter:  # fmt: skip
    """M-SegFormer: all modalities share the encoder, whichever they are, or each has its own."""
    return SegFormer(
        backbone, num_classes, embed_dim=embed_dim, dropout=dropout, drop_path=drop_path,
        norm_momentum=norm_momentum, own_encoders=modalities if encoders == "per_modality" else (),
        fusion=fusion,
    )  # fmt: skip


MODELS: dict[str, Builder] = dict.fromkeys(BACKBONES, _segformer)


def register_backbone(name: str, builder: Builder) -> None:
    """Make a model known under the name of its backbone, for ``--model.backbone``."""
    MODELS[name] = builder


def model_builder(name: str) -> Builder:
    """The model registered as ``name``.

    Raises:
        ConfigError: there is no such model; the message suggests the nearest name.
    """
    if name not in MODELS:
        raise ConfigError(unknown("backbone", name, MODELS))
    return MODELS[name]


def optional_keywords(name: str, chosen: Mapping[str, object]) -> dict[str, object]:
    """The keywords of `OPTIONAL` that a model is built with: those that are not at their default.

    Raises:
        ConfigError: the model does not have one of them.
    """
    known = inspect.signature(model_builder(name)).parameters
    wanted = {key: chosen[key] for key, default in OPTIONAL.items() if chosen[key] != default}
    for key in wanted:
        if key not in known:
            raise ConfigError(f"the model {name} has no --model.{key}: leave it out")
    return wanted
