"""Logits of the cases of one batch; what is encoded once serves all of them where fusion allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastseg.evaluation.scoring.cases import Missing
from fastseg.models import Segmenter
from fastseg.models.in_parts import SegmenterInParts

Positions = Sequence[tuple[int, ...]]
"""Modalities of one subset after the other."""


def logits_of_whole_sensors(
    network: Segmenter, images: Tensor, subsets: Positions, missing: Missing
) -> Iterator[Tensor]:
    """Logits ``[B, K, h, w]`` of ``images [M, B, 3, H, W]`` with one subset after the other."""
    return network.logits_of_subsets(images, subsets, missing)


def logits_of_torn_sensors(
    network: Segmenter, images: Tensor, subsets: Positions
) -> Iterator[Tensor]:
    """Logits where the modalities outside a subset are replaced by torn ones.

    Args:
        network: sees all M modalities.
        images: ``[2 M, B, 3, H, W]``: the whole images, then the torn ones.
        subsets: positions of the modalities that are whole.
    """
    count = len(images) // 2
    rows = [[m if m in whole else count + m for m in range(count)] for whole in subsets]
    if isinstance(network, SegmenterInParts) and not network.reads_present:
        # whether an image is whole or torn makes no difference to an encoder that all share
        yield from network.logits_of_choices(network.encode(images), rows)
    else:
        for chosen in rows:
            yield network(images[chosen]).logits


def torn(images: Tensor, kept: Tensor) -> Tensor:
    """``[2 M, B, 3, H, W]``: images, and the same with zeros where ``kept`` is false."""
    return torch.cat([images, images * kept.to(images.dtype)])
