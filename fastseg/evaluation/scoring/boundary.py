"""Boundary IoU (arXiv:2103.16562) of semantic segmentation: agreement near the edges of classes.

The boundary of a mask is what an erosion by a square of ``2 d + 1`` pixels takes from it, with
nothing beyond the image; d is `RATIO` of the image's diagonal. Per class

    IoU = |G_d & P_d| / |G_d | P_d|     G_d, P_d: boundaries of label and prediction

with both counts summed over the images before the ratio. The paper defines it per mask; of a class
of semantic segmentation the mask is its pixels in one image. Ignored pixels belong to no class, in
the label and in the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

RATIO = 0.02
"""Width of a boundary as a share of the diagonal."""
_NOTHING = -1


def boundary_width(height: int, width: int) -> int:
    """D in pixels, at least 1."""
    return max(1, round(RATIO * math.hypot(height, width)))


def boundary_counts(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Pixels in both boundaries and in either of them, by image and class.

    Args:
        predictions: ``[B, H, W]`` integer classes.
        labels: ``[B, H, W]`` integers; what lies outside ``[0, K)`` is ignored.
        num_classes: K.

    Returns:
        ``[B, K, 2]`` int64.
    """
    batch, height, width = labels.shape
    reach, k = boundary_width(height, width), num_classes
    labels = labels.to(torch.int16)
    counted = (labels >= 0) & (labels < k)
    wanted = labels.where(counted, _NOTHING)
    found = predictions.to(torch.int16).where(counted, _NOTHING)
    in_label, in_prediction = (counted & edges(one, reach) for one in (wanted, found))
    places = torch.arange(batch, device=labels.device).view(-1, 1, 1) * k

    def pixels(classes: Tensor, chosen: Tensor) -> Tensor:
        """``[B, K]``: the chosen pixels of each class."""
        # the others fall into one extra cell: no boolean indexing, hence no wait for a GPU
        cells = (places + classes).where(chosen, batch * k).flatten()
        counts = torch.zeros(batch * k + 1, dtype=torch.int64, device=labels.device)
        return counts.scatter_add_(0, cells, torch.ones_like(cells))[:-1].view(batch, k)

    both = pixels(wanted, in_label & in_prediction & (wanted == found))
    either = pixels(wanted, in_label) + pixels(found, in_prediction) - both
    return torch.stack((both, either), dim=-1)


def edges(classes: Tensor, reach: int) -> Tensor:
    """Bool ``[B, H, W]``: pixels with another class, or the image's end, within ``reach`` pixels.

    As a pixel is inside its mask exactly if its whole window is, one look at the map serves all
    classes: the smallest and largest class of the window.

    Args:
        classes: ``[B, H, W]``.
        reach: half the side of the window; distance is the larger of rows and columns.
    """
    around = pad(classes, (reach,) * 4, value=_NOTHING)
    least, most = (_over_window(around, 2 * reach + 1, by) for by in (torch.minimum, torch.maximum))
    return (least != classes) | (most != classes)


def _over_window(x: Tensor, length: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Extremes over windows ``length x length``, by doubling the reach of each pass."""
    for axis in (1, 2):
        done = 1
        while done < length:
            step = min(done, length - done)
            rest = x.shape[axis] - step
            x = combine(x.narrow(axis, 0, rest), x.narrow(axis, step, rest))
            done += step
    return x
