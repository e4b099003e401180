"""From a file of one layout to one of another, for a network that the tensors themselves show."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...errors import CheckpointError
from ..backbones.mit import MixTransformer
from ..cross_modal.segmenter import CrossModalSegmenter
from ..segformer import SegFormer
from .describe import Shapes, describe
from .load import load_weights
from .recognise import Found, choose
from .report import LoadReport, SaveReport
from .save import layout_named, save_weights
from .sensors import modalities_of
from .state_dicts import open_weights


def convert(
    source: Path,
    target: Path,
    layout: str,
    *,
    part: str | None = None,
    encoder_only: bool = False,
) -> tuple[LoadReport, SaveReport]:
    """Read a file of any known layout, and write it in another one.

    Args:
        source: as in `load_weights`; everything in it has to have its place.
        target: as in `save_weights`.
        layout: that of the new file.
        part: the network in a file of several.
        encoder_only: take the encoder alone.

    Raises:
        CheckpointError: the file cannot be read, is not whole, or has what the layout has no place
            for.
        ConfigError: the layout or the ending of the target is unknown.
    """
    layout_named(layout)
    file = open_weights(source)
    found = choose(file, part)
    network = _network(found, modalities_of(file), encoder_only, source)
    alone = isinstance(network, MixTransformer)
    loaded = load_weights(network, source, part=part, encoder_only=alone)
    return loaded, save_weights(network, target, layout)


def _network(found: Found, names: tuple[str, ...], encoder_only: bool, source: Path) -> nn.Module:
    """A network with a place for every tensor, whose values are not set."""
    shapes = Shapes(found)
    config = shapes.backbone()
    if config is None:
        raise CheckpointError(
            f"{source} ({found.layout.name} layout) holds {describe(found)}: a norm of a level, or "
            "all blocks of one, are missing; fetch it again"
        )
    classes = shapes.rows("decoder.linear_pred.weight")
    width = shapes.rows("decoder.linear_fuse.conv.weight")
    others = shapes.auxiliaries()
    with torch.device("meta"):
        network: nn.Module
        if encoder_only or not classes or not width:
            network = MixTransformer(config)
        elif others:
            mit = bool(shapes.of("auxiliary.patch_embed1.proj.weight"))
            scored = others == 1 or shapes.of("auxiliary.hubs.0.scores.0.0.weight")
            sensors = names if len(names) == others + 1 else [f"m{i}" for i in range(others + 1)]
            network = CrossModalSegmenter(
                config, classes, sensors, width, second="mit" if mit else "pooling",
                hub_selection="self_query" if scored else "mean",
            )  # fmt: skip
        else:
            network = SegFormer(config, classes, width, own_encoders=shapes.encoders())
    network.to_empty(device="cpu")
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()  # files may lack it
    return network
