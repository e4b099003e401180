"""Encoding of the images that are there alone, where each sample has its own modalities.

    marks[m, b]                  1 for an image that is there
    packed = encoder(images[source_1], .., images[source_N])
    features[target_n] = packed[n],   zeros elsewhere

Sources and targets are places in ``[M, B]`` made flat, listed modality by modality on the host, so
that the number of images is known without a wait for the device. The encoder treats every image
alone: features, sums and gradients are those of encoding all, up to the rounding of another batch.

**Padding.** Code that is made for a shape (a CUDA graph, a compiled block) should meet few of them.
Then the list is filled up to one of a few lengths with a repetition of its first source, whose
target ``M B`` is a row that nobody reads: its gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Encoder = Callable[[Tensor], list[Tensor]]


class Packing(NamedTuple):
    """Images that are encoded, among ``[M, B]``.

    Attributes:
        places: ``[2, N]`` int64, where each is taken from and where its features are put.
        groups: numbers of images of one encoder after the other, N in all: one number where all
            modalities share theirs.
    """

    places: Tensor
    groups: tuple[int, ...]


@dataclass(frozen=True)
class PackingRule:
    """How marks become places.

    Attributes:
        apart: each modality has an encoder of its own. It gets one image at least, a blind one if
            need be: its parameters then have gradients, zeros, in every step and on every process.
        lengths: most numbers of images that may occur; 0: as many as there are.
    """

    apart: bool = False
    lengths: int = 0

    def numbers(self, modalities: int, samples: int) -> list[int]:
        """The numbers of images of a step that may occur, of one encoder for all, ascending."""
        return sorted(
            {
                self._padded(n, modalities * samples)
                for n in range(samples, modalities * samples + 1)
            }
        )

    def _padded(self, count: int, most: int) -> int:
        unit = -(-most // self.lengths) if self.lengths else 1
        return min(-(-count // unit) * unit, most)

    def pack(self, marks: Tensor) -> Packing:
        """The packing of ``marks [M, B]``, 1 or 0, on the host."""
        m, b = marks.shape
        flat = marks.flatten().nonzero().flatten()
        if self.apart:
            rows = [flat[flat // b == i] for i in range(m)]
            # a blind image is the modality's first
            parts = [
                torch.stack([x, x]) if len(x) else torch.tensor([[i * b], [m * b]])
                for i, x in enumerate(rows)
            ]
            return Packing(torch.cat(parts, 1), tuple(x.shape[1] for x in parts))
        blind = self._padded(len(flat), m * b) - len(flat)
        sources = torch.cat([flat, flat[:1].expand(blind)])
        targets = torch.cat([flat, flat.new_full((blind,), m * b)])
        return Packing(torch.stack([sources, targets]), (len(sources),))


def encode_packed(encoders: Sequence[Encoder], images: Tensor, packing: Packing) -> list[Tensor]:
    """Encode the images of a packing alone.

    Args:
        encoders: ``[N, 3, H, W]`` to levels ``[N, C, h, w]``, each image on its own: one for all,
            or that of each of the M modalities.
        images: ``[M, B, 3, H, W]``.
        packing: see there.

    Returns:
        Levels ``[M, B, C, h, w]``, zeros for the other images; the channels are the fastest axis in
        memory.
    """
    m, b = images.shape[:2]
    taken = _taken(images.flatten(0, 1), packing.places[0])
    parts = [e(x) for e, x in zip(encoders, torch.split(taken, list(packing.groups)), strict=True)]
    return [_spread(level, packing.places[1], m, b) for level in zip(*parts, strict=True)]


def _taken(images: Tensor, rows: Tensor) -> Tensor:
    """Some of ``images [N, C, H, W]``, whose order in memory is kept."""
    pixels = images.movedim(1, -1)
    if pixels.is_contiguous():
        return pixels.index_select(0, rows).movedim(-1, 1)
    return images.index_select(0, rows)


def _spread(parts: Sequence[Tensor], targets: Tensor, m: int, b: int) -> Tensor:
    """Features ``[N, C, h, w]`` of one encoder after the other at their places."""
    pixels = (
        torch.cat([x.movedim(1, -1) for x in parts]) if len(parts) > 1 else parts[0].movedim(1, -1)
    )
    out = pixels.new_zeros((m * b + 1, *pixels.shape[1:])).index_copy_(0, targets, pixels)
    return out[:-1].view(m, b, *pixels.shape[1:]).movedim(-1, 2)


def checked_marks(images: Tensor, marks: Tensor) -> Tensor:
    """``marks [M, B]`` as bool on the host, which waits for a device that has them.

    Raises:
        ValueError: they are not one for each image, or leave a sample without any.
    """
    if marks.shape != images.shape[:2]:
        raise ValueError(
            f"expected marks [M, B] = {list(images.shape[:2])}, got {list(marks.shape)}"
        )
    marks = marks.cpu().bool()
    if not marks.any(0).all():
        raise ValueError(
            f"samples {(~marks.any(0)).nonzero().flatten().tolist()} have no modality left"
        )
    return marks


def subsets_of(marks: Tensor) -> list[tuple[list[int], list[int]]]:
    """Modalities of the different subsets of ``marks [M, B]``, and the samples that have them."""
    found: dict[tuple[bool, ...], list[int]] = {}
    for sample, column in enumerate(marks.T.tolist()):
        found.setdefault(tuple(column), []).append(sample)
    return [([m for m, kept in enumerate(key) if kept], rows) for key, rows in found.items()]
