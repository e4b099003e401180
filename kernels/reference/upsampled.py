"""Losses and classes of upsampled logits on a CPU, tile by tile, in the cache.

    z = up(logits) = Y logits X^T     [K, H, W] of a sample, made anew in each pass and never kept

Y ``[H, h]`` and X ``[W, w]`` hold the bilinear weights. A tile of z needs few rows and columns of
the logits, so products make it in a third of the time of torch's interpolation, and its gradient in
a tenth. What is computed is what `fastseg.kernels.reference.segmentation` defines, up to the
rounding of the interpolation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .closed_form import with_gradient
from .divergence import compare_softmaxes

# elements of a tile and thread: a tile and its temporaries stay in the caches of the cores
_TILE = 1 << 19


class _Band(NamedTuple):
    """Some rows or columns of the result.

    Attributes:
        outside: the rows.
        inside: rows of the logits that they depend on.
        weights: ``[rows outside, rows inside]``.
    """

    outside: slice
    inside: slice
    weights: Tensor


class _Tile(NamedTuple):
    """A rectangle of the upsampled logits."""

    rows: _Band
    columns: _Band

    @property
    def place(self) -> tuple[slice, slice]:
        """Its pixels."""
        return self.rows.outside, self.columns.outside

    def up(self, logits: Tensor) -> Tensor:
        """The rectangle of one sample: ``[K, h, w]`` to a new tensor."""
        x = logits[:, self.rows.inside, self.columns.inside]
        return self.rows.weights @ (x @ self.columns.weights.T)

    def add_down(self, total: Tensor, gradient: Tensor) -> None:
        """Add the gradient at the logits to ``total [K, h, w]``."""
        part = self.rows.weights.T @ (gradient @ self.columns.weights)
        total[:, self.rows.inside, self.columns.inside] += part


def _tiles(logits: Tensor, size: Sequence[int]) -> list[_Tile]:
    """The tiles of each sample of ``[B, K, h, w]``."""
    most = _TILE * torch.get_num_threads() // logits.shape[1]
    columns = max(1, min(size[1], most, max(128, round(most**0.5))))
    rows = max(1, most // columns)
    sides = zip(logits.shape[2:], size, (rows, columns), strict=True)
    first, second = (list(_bands(*side, logits)) for side in sides)
    return [_Tile(y, x) for y in first for x in second]


def _bands(inside: int, outside: int, most: int, like: Tensor) -> Iterator[_Band]:
    """Bands of at most ``most`` rows."""
    units = torch.eye(inside, dtype=like.dtype, device=like.device)
    weights = functional.interpolate(units[None], outside, mode="linear")[0].T
    for start in range(0, outside, most):
        stop = min(start + most, outside)
        # with a row to spare on either side, whatever rounds
        first = max(0, int(start * inside / outside) - 2)
        last = min(inside, int(stop * inside / outside) + 2)
        yield _Band(
            slice(start, stop), slice(first, last), weights[start:stop, first:last].contiguous()
        )


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each pixel, see `fastseg.kernels.reference.supervised`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        ctx.tiles = _tiles(logits, target.shape[1:])
        ctx.save_for_backward(logits, target, known)
        losses = logits.new_empty(target.shape)
        for x, y, out in zip(logits, target, losses, strict=True):
            for tile in ctx.tiles:
                z = tile.up(x)
                z -= z.amax(0)
                own = z.gather(0, y[tile.place][None])[0]
                out[tile.place] = z.exp_().sum(0).log_() - own
        return losses.masked_fill_(~known, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, target, known = ctx.saved_tensors
        upstream = upstream.where(known, 0.0)
        gradient = torch.zeros_like(logits)
        with torch.autocast("cpu", enabled=False):
            for x, y, weight, out in zip(logits, target, upstream, gradient, strict=True):
                for tile in ctx.tiles:
                    own, z = y[tile.place][None], tile.up(x)
                    z -= z.amax(0)
                    others = z.exp_()
                    others *= weight[tile.place] / others.sum(0)
                    others.scatter_(0, own, 0.0)
                    others.scatter_(0, own, others.sum(0, keepdim=True).neg_())
                    tile.add_down(out, others)
        return gradient, None, None


def cross_entropy(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of each pixel of the upsampled logits, zero with zero gradient where unknown.

    Args:
        logits: ``[B, K, h, w]`` in the precision of the arithmetic.
        target: ``[B, H, W]`` int64, a class also where it is not known.
        known: ``[B, H, W]`` bool.

    Returns:
        ``[B, H, W]``.
    """
    losses: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits.contiguous(), target, known
    )
    return losses


def distillation(student: Tensor, teacher: Tensor, size: Sequence[int], t: float) -> Tensor:
    """`logit_distillation` of the upsampled logits with temperature t.

    Args:
        student: ``[B, K, h, w]`` in the precision of the arithmetic.
        teacher: the same; constant.
        size: ``(H, W)``.
        t: temperature.
    """
    student = student.contiguous()
    with torch.no_grad():
        tiles, value = _tiles(student, size), student.new_zeros(())
        gradient = torch.zeros_like(student)
        for x, y, out in zip(student, teacher.contiguous(), gradient, strict=True):
            for tile in tiles:
                logs = [(tile.up(logits) / t).log_softmax(0) for logits in (x, y)]
                ratio, q, difference = compare_softmaxes(*logs)
                value += torch.addcmul(difference, q, ratio, value=-1).sum()
                tile.add_down(out, difference)
        value.clamp_(min=0)
    pixels = student.shape[:2].numel() * size[0] * size[1]
    return with_gradient(student, value, gradient / t) * (t**2 / pixels)


def first_largest(x: Tensor) -> Tensor:
    """``x.argmax(0)`` of ``[K, H, W]`` as uint8, K at most 256, in a fifth of the time.

    Where a class is NaN it is class 0.
    """
    classes = torch.arange(len(x), dtype=torch.uint8, device=x.device).view(-1, 1, 1)
    # 255 for a class that is not the largest, and at least its number for one that is
    return (x < x.amax(0)).view(torch.uint8).neg_().bitwise_or_(classes).amin(0)
