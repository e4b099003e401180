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


OPTIONAL: dict[str, object] = {
    "encoders": "shared",
    "fusion": "mean",
    "hub": None,
    "hub_selection": "self_query",
    "scramble": False,
    "foundation": None,
    "train_foundation": False,
    "adapter_rank": 8,
    "pyramid_width": 256,
}
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
EMBED_DIMS: dict[str, int] = {}
"""Width of the head of published models by backbone, where it is not `EMBED_DIM`."""
EMBED_DIM = 768
"""That of AnySeg and RobustSeg, and of SegFormer from B2 on."""


def register_backbone(name: str, builder: Builder, embed_dim: int = EMBED_DIM) -> None:
    """Make a model known under the name of its backbone, for ``--model.backbone``.

    Args:
        name: name of the backbone.
        builder: makes the model.
        embed_dim: width of its head that :func:`build_segmenter` takes by default.
    """
    MODELS[name] = builder
    EMBED_DIMS[name] = embed_dim


def build_segmenter(
    name: str,
    num_classes: int,
    modalities: Sequence[str],
    *,
    embed_dim: int | None = None,
    dropout: float = 0.1,
    drop_path: float = 0.1,
    norm_momentum: float = 0.1,
    **optional: object,
) -> Segmenter:
    """A model with random weights, from torch's generator, on the CPU.

    ``build_segmenter("cmnext_b2", 25, ["img", "depth", "event", "lidar"])`` is CMNeXt-B2.

    Args:
        name: that of its backbone, such as ``mit_b0`` (M-SegFormer), ``cmnext_b2``, ``cmx_b2``
            or ``dinov2_small``, which needs the folder of its weights as ``foundation``.
        num_classes: K.
        modalities: names of the M modalities, in the order in which their images come.
        embed_dim: width of the head; None: that of published models.
        dropout: probability that a channel before the classifier is dropped in training.
        drop_path: stochastic depth of the encoder's last block.
        norm_momentum: share of the newest batch in BatchNorm statistics.
        optional: keywords of `OPTIONAL`, as far as the model has them.

    Raises:
        ConfigError: the name is unknown, or the model does not have a keyword or take the
            modalities.
    """
    builder = model_builder(name)
    if strange := sorted(optional.keys() - OPTIONAL.keys()):
        raise ConfigError(unknown("keyword", strange[0], OPTIONAL))
    chosen = optional_keywords(name, OPTIONAL | optional)
    return builder(
        name,
        num_classes,
        modalities,
        embed_dim=EMBED_DIMS.get(name, EMBED_DIM) if embed_dim is None else embed_dim,
        dropout=dropout,
        drop_path=drop_path,
        norm_momentum=norm_momentum,
        **chosen,
    )


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
