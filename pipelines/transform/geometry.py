"""Flip, rescale and crop as one mapping from output pixels to source pixels.

Both loaders execute the same ``Geometry``: no intermediate image of the rescaled size is made.
Rules are those of ``semseg/augmentations_mm.py`` in the DELIVER repository, with one departure:
crop offsets are drawn from ``0..margin``; there they run to ``margin + 1`` and the window may
leave the image by one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..tools.keyed_random import sample_uniforms

Index = NDArray[np.int64]

_STRIDE = 32
"""Evaluation images are rounded up to the stride of the encoder's last level."""


@dataclass(frozen=True)
class GeometryDraws:
    """The random choices for one sample in one epoch, shared by all modalities and the label."""

    flip: bool
    scale: float
    """r: the short side becomes ``int(size * r)``."""
    top: float
    """Vertical position of the crop in [0, 1)."""
    left: float
    """Horizontal position of the crop in [0, 1)."""


def draw(
    seed: int, epoch: int, index: int, scale: tuple[float, float], flip: float = 0.5
) -> GeometryDraws:
    """Draw for sample ``index``: flip with probability ``flip``, r uniform in ``scale``."""
    u = sample_uniforms(seed, epoch, index, 4).tolist()
    low, high = scale
    return GeometryDraws(flip=u[0] < flip, scale=low + (high - low) * u[1], top=u[2], left=u[3])


@dataclass(frozen=True)
class Axis:
    """One image axis: ``source`` pixels become ``scaled``, of which a window is kept, then padded.

    Output pixel i < ``length`` is pixel ``offset + i`` of the rescaled (if ``flip``, first
    mirrored) source; pixels from ``length`` to ``out`` are padding.
    """

    source: int
    scaled: int
    offset: int
    length: int
    out: int
    flip: bool = False

    def nearest(self) -> Index:
        """Source index of each output pixel, ``floor(j * source / scaled)``, exactly.

        This is the legacy nearest rule of the published code, not the half-pixel one.
        """
        index = (self.offset + np.arange(self.length)) * self.source // self.scaled
        return self.source - 1 - index if self.flip else index

    def bilinear(self) -> tuple[Index, Index, NDArray[np.float32]]:
        """Two source indices and the weight of the second, at ``(j + 1/2) source/scaled - 1/2``.

        Half-pixel centres, no antialias, edges repeated.
        """
        position = (self.offset + np.arange(self.length) + 0.5) * self.source / self.scaled - 0.5
        position = position.clip(0, self.source - 1)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, self.source - 1)
        weight = (position - low).astype(np.float32)
        if self.flip:
            low, high = self.source - 1 - low, self.source - 1 - high
        return low, high, weight

    def region(self, *, nearest: bool) -> tuple[float, float]:
        """Start and end of the window in source coordinates, start above end if ``flip``.

        A resizer that samples ``length`` pixels of this region at half-pixel centres gives
        ``bilinear()``, and one that takes the floor of these positions gives ``nearest()``.
        """
        step = self.source / self.scaled
        start, end = self.offset * step, (self.offset + self.length) * step
        if nearest:
            # exact positions are multiples of 1/scaled: half of that keeps float32 off the edges
            shift = 0.5 / self.scaled - step / 2
            start, end = start + shift, end + shift
        return (self.source - start, self.source - end) if self.flip else (start, end)


@dataclass(frozen=True)
class Geometry:
    """The mapping of both axes."""

    rows: Axis
    cols: Axis


def train_geometry(draws: GeometryDraws, height: int, width: int, size: int) -> Geometry:
    """Crop of ``size x size`` out of the rescaled image, padded at the right and bottom.

    The image is scaled by ``min(int(size r) / short side, int(4 size r) / long side)``, so r = 1
    brings the short side to ``size`` unless the image is longer than 4:1.
    """
    short, long = int(size * draws.scale), int(4 * size * draws.scale)
    factor = min(short / min(height, width), long / max(height, width))

    def axis(source: int, position: float, flip: bool) -> Axis:
        scaled = max(1, int(source * factor + 0.5))
        length = min(size, scaled)
        offset = int(position * (scaled - length + 1))
        return Axis(source, scaled, offset, length, size, flip)

    return Geometry(axis(height, draws.top, False), axis(width, draws.left, draws.flip))


def eval_geometry(height: int, width: int, size: int) -> Geometry:
    """The whole image: short side to ``size``, long side in proportion, both to multiples of 32.

    The published code does the two steps as two resizes; for square images this is the same.
    """
    factor = size / min(height, width)

    def axis(source: int) -> Axis:
        out = -(-int(source * factor + 0.5) // _STRIDE) * _STRIDE
        return Axis(source, scaled=out, offset=0, length=out, out=out)

    return Geometry(axis(height), axis(width))


def padded_geometry(height: int, width: int) -> Geometry:
    """The whole image as it is, padded at the right and bottom to multiples of 32."""

    def axis(source: int) -> Axis:
        return Axis(source, source, 0, source, out=-(-source // _STRIDE) * _STRIDE)

    return Geometry(axis(height), axis(width))
