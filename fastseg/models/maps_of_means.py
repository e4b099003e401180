"""Logits of the means of many choices of the same encoded images.

    relu(bn(head(mean_m F_m))) = relu(mean_m bn(head(F_m)))

Up to its ReLU the all-MLP head is affine, and the weights of a mean sum to 1. So the map of each
image is made once, and a choice costs a sum, the ReLU and the classifier. Equal to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .heads.mlp import MLPHead

_MOST = 1 << 28
"""Elements of the maps of all images of a batch, 1 GiB: beyond these they are not kept."""


def maps_are_cheap(head: MLPHead, features: Sequence[Tensor]) -> bool:
    """True where maps of all images fit into memory and round no more than their mean's.

    That is on a CPU and in float32; a GPU has a kernel that never makes the map.
    """
    first = features[0]
    return (
        first.device.type == "cpu"
        and first.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and first[:, :, 0].numel() * head.linear_pred.in_channels <= _MOST
    )


def logits_of_means(
    head: MLPHead, features: Sequence[Tensor], choices: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Logits ``[B, K, h_1, w_1]`` of the mean of one choice after the other.

    Args:
        head: in evaluation mode.
        features: four levels ``[N, B, C_i, h_i, w_i]`` of N images of each sample.
        choices: rows of the N that are averaged; one may be taken several times.
    """
    count, size = len(features[0]), features[0].shape[3:]
    maps = head.before_relu([level.flatten(0, 1) for level in features])
    maps = maps.view(count, -1, *maps.shape[1:])
    for first, *others in choices:
        total = maps[first].clone()
        for row in others:
            total += maps[row]
        yield head.classify(total.div_(1 + len(others)), size)


def with_blanks(
    features: Sequence[Tensor], blank: Sequence[Tensor], subsets: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[list[int]]]:
    """Features with those of blank images behind, and the rows of each subset among them.

    Args:
        features: levels ``[M, B, C_i, h_i, w_i]``.
        blank: the same of images of zeros, or ``[1, B, C_i, h_i, w_i]`` for all modalities.
        subsets: positions of the modalities that are there; a blank takes the place of the others.
    """
    count, own = len(features[0]), len(blank[0]) > 1
    # the channels stay the fastest axis
    pairs = zip(features, blank, strict=True)
    both = [torch.cat([x.movedim(2, -1) for x in pair]).movedim(-1, 2) for pair in pairs]
    others = [count + m * own for m in range(count)]
    return both, [[m if m in there else others[m] for m in range(count)] for there in subsets]
