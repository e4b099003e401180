"""Losses and classes of upsampled logits on a CPU, tile by tile, in the cache.

    z = up(logits) = Y logits X^T     [K, H, W] of a sample, made anew in each pass and never kept

Y ``[H, h]`` and X ``[W, w]`` hold the bilinear weights. A tile of z needs few rows and columns of
the logits, so products make it in a third of the time of torch's interpolation, and its gradient in
a tenth. What is computed is what `fastseg.kernels.reference.segmentation` defines, up to the
rounding of the interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .closed_form import with_gradient
from .divergence import compare_softmaxes

# elements of a block of cells in `upsampled_classes`: it and its temporaries stay in the cache
_BLOCK = 1 << 18
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
    """``x.argmax(-2)`` of ``[.., K, pixels]`` as uint8, K at most 256, in a tenth of the time.

    Where a class is NaN it is class 0. The values of x are lost.
    """
    classes = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None]
    # 1 for a class that is not the largest; only results of the same dtype are vectorised
    x.lt_(x.amax(-2, keepdim=True))
    return torch.add(classes, x, alpha=256, out=x).amin(-2).to(torch.uint8)


def upsampled_classes(logits: Tensor, factor: int) -> Tensor:
    """Most likely class of the logits upsampled by an even factor f in both directions.

    The f x f pixels between four logits, a cell, are means of these. A class that is the most
    likely at all four is so at each pixel between: those cells, which are most, are not computed.
    The others are, some at a time and always as many, so that the batch plays no part.

    Args:
        logits: ``[B, K, h, w]``, K at most 256.
        factor: f.

    Returns:
        ``[B, f h, f w]`` uint8.
    """
    b, k, h, w = logits.shape
    values = logits.movedim(1, 0).reshape(k, -1).contiguous()
    nearest = first_largest(values.clone()).view(b, h, w)
    device = logits.device
    # beyond the border lies what lies at it
    rows, columns = (
        torch.arange(-1, side + 1, device=device).clamp(0, side - 1) for side in (h, w)
    )
    around = nearest[:, rows][:, :, columns]
    first = around[:, :-1, :-1]
    same = (first == around[:, :-1, 1:]) & (first == around[:, 1:, :-1])
    same &= first == around[:, 1:, 1:]
    cells = first.reshape(-1, 1).repeat(1, factor**2)
    _fill_cells(cells, (~same).flatten().nonzero()[:, 0], values, rows, columns)
    cells = cells.view(b, h + 1, w + 1, factor, factor).transpose(2, 3)
    half = factor // 2
    return cells.reshape(b, (h + 1) * factor, -1)[:, half:-half, half:-half].contiguous()


def _fill_cells(
    cells: Tensor, chosen: Tensor, values: Tensor, rows: Tensor, columns: Tensor
) -> None:
    """Compute the chosen cells.

    Args:
        cells: ``[B (h + 1) (w + 1), f f]`` uint8, written to.
        chosen: ``[N]``, which of them.
        values: ``[K, B h w]`` logits.
        rows: ``[h + 2]`` rows of the logits, one beyond each border.
        columns: ``[w + 2]``.
    """
    k, h, w = len(values), len(rows) - 2, len(columns) - 2
    factor = math.isqrt(cells.shape[1])
    behind = (torch.arange(factor, dtype=values.dtype, device=values.device) + 0.5) / factor
    shares = torch.stack([1 - behind, behind], dim=1)
    weights = torch.kron(shares, shares)  # [f f, 4]
    sample, place = chosen // ((h + 1) * (w + 1)), chosen % ((h + 1) * (w + 1))
    i, j = place // (w + 1), place % (w + 1)
    corners = torch.stack(
        [(sample * h + rows[i + y]) * w + columns[j + x] for y in (0, 1) for x in (0, 1)]
    )
    size = max(16, _BLOCK // (factor**2 * k) // 16 * 16)
    corners = functional.pad(corners, (0, -len(chosen) % size))
    four = values.new_empty(4, k, size)
    for start in range(0, len(chosen), size):
        for out, where in zip(four, corners[:, start : start + size], strict=True):
            torch.index_select(values, 1, where, out=out)
        between = (weights @ four.view(4, -1)).view(-1, k, size)
        block = chosen[start : start + size]
        cells[block] = first_largest(between).T[: len(block)]
