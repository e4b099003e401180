"""Images of a step that do not learn: their features are constants.

Features have the axes ``[M, B, C, h, w]`` with the channels the fastest in memory, and keep them.
Which images are meant is read on the device, so nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def encode_in_part(
    encoder: Callable[[Tensor], list[Tensor]], images: Tensor, learning: Tensor
) -> list[Tensor]:
    """Encode each image once, those of ``learning`` with gradients and the others without.

    Args:
        encoder: ``[N, 3, H, W]`` to levels ``[N, C, h, w]``, each image on its own.
        images: ``[M, B, 3, H, W]``.
        learning: ``[W, B]`` int64, rows of ``images`` for each sample, each once.

    Returns:
        Levels ``[M, B, C, h, w]``.
    """
    m, b = images.shape[:2]
    # rows of the images that learn first, the others after them
    marks = torch.zeros((m, b), dtype=torch.int64, device=images.device).scatter_(0, learning, 1)
    order = marks.argsort(dim=0, descending=True, stable=True)
    places = places_of(order)
    back = places.argsort()
    taken = images.flatten(0, 1).index_select(0, places)
    split = learning.numel()
    own = encoder(taken[:split])
    with torch.no_grad():
        constant = encoder(taken[split:]) if split < m * b else [x[:0] for x in own]
    return [
        torch.cat([x.movedim(1, -1), y.movedim(1, -1)])
        .index_select(0, back)
        .movedim(-1, 1)
        .view(m, b, *x.shape[1:])
        for x, y in zip(own, constant, strict=True)
    ]


def encode_chosen(
    encoder: Callable[[Tensor], list[Tensor]],
    images: Tensor,
    choose: Callable[[list[Tensor]], Tensor],
) -> list[Tensor]:
    """Encode all images without gradients, then those that are chosen by it once more with them.

    This costs W more passes forward, and saves the M - W passes backward of an encoding of all
    images with gradients, which take twice the time. The values agree in evaluation mode; in
    training the second pass draws dropout anew, and the chosen features are its.

    Args:
        encoder: ``[N, 3, H, W]`` to levels ``[N, C, h, w]``, each image on its own.
        images: ``[M, B, 3, H, W]``.
        choose: levels ``[M, B, C, h, w]`` to rows ``[W, B]`` int64 of each sample, each once.

    Returns:
        Levels ``[M, B, C, h, w]``.
    """
    m, b = images.shape[:2]
    flat = images.flatten(0, 1)
    with torch.no_grad():
        features = [x.view(m, b, *x.shape[1:]) for x in encoder(flat)]
        places = places_of(choose(features))
    if not torch.is_grad_enabled():
        return features
    own = encoder(flat.index_select(0, places))
    pixels = [x.movedim(2, -1) for x in features]
    mixed = [
        x.flatten(0, 1).index_copy(0, places, y.movedim(1, -1)).view(x.shape)
        for x, y in zip(pixels, own, strict=True)
    ]
    return [x.movedim(-1, 2) for x in mixed]


def places_of(rows: Tensor) -> Tensor:
    """Positions ``[W B]`` of rows ``[W, B]`` of each sample in ``[M, B, ...]`` made flat."""
    b = rows.shape[1]
    return (rows * b + torch.arange(b, device=rows.device)).flatten()


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """``out[w, b] = x[rows[w, b], b]``.

    Args:
        x: images or features ``[M, B, C, h, w]``, of which the order in memory is kept.
        rows: ``[W, B]`` int64.

    Returns:
        ``[W, B, C, h, w]``.
    """
    pixels = x.movedim(2, -1)
    last = pixels.is_contiguous()
    taken = (pixels if last else x).flatten(0, 1).index_select(0, places_of(rows))
    taken = taken.view(*rows.shape, *taken.shape[1:])
    return taken.movedim(-1, 2) if last else taken


def learning_only(features: Sequence[Tensor], learning: Tensor) -> list[Tensor]:
    """The features with gradients for the images of ``learning [W, B]`` alone.

    The gradients of the others are exactly zero.
    """
    first = features[0]
    marks = torch.zeros(first.shape[:2], dtype=torch.bool, device=first.device)
    marks = marks.scatter_(0, learning, torch.ones_like(learning, dtype=torch.bool))
    return [torch.where(marks.view(*marks.shape, 1, 1, 1), x, x.detach()) for x in features]
