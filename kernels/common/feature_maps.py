"""Feature maps of several levels, modalities and networks as the arguments of one launch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import triton
from torch import Tensor

from .tiles import Maps

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _pixel_stride(x: Tensor) -> int | None:
    """Distance between neighbours of the flattened pixels, None if they have no common one."""
    h, w = x.shape[3:]
    if h == 1 and w == 1:
        return 1
    if w == 1:
        return x.stride(3)
    return x.stride(4) if h == 1 or x.stride(3) == w * x.stride(4) else None


def _is_channels_last(x: Tensor) -> bool:
    """True if kernels go along the channels of ``x``, also where both axes would be possible."""
    stride = _pixel_stride(x)
    return stride is not None and (x.stride(2) == 1 if x.shape[2] > 1 else stride != 1)


def layout_of(x: Tensor) -> list[int]:
    """Numbers to make a map like ``x`` from: M, C, h, w, memory order and dtype."""
    return [x.shape[0], *x.shape[2:], int(_is_channels_last(x)), DTYPES.index(x.dtype)]


def new_maps(layouts: Sequence[int], labels: Tensor) -> list[Tensor]:
    """Uninitialised maps ``[M, B, C, h, w]`` of the layouts, which follow each other."""
    maps = []
    for i in range(0, len(layouts), 6):
        m, c, h, w, channels_last, dtype = layouts[i : i + 6]
        size = (h, w, c) if channels_last else (c, h, w)
        x = labels.new_empty((m, labels.shape[0], *size), dtype=DTYPES[dtype])
        maps.append(x.movedim(4, 2) if channels_last else x)
    return maps


class FeatureMaps:
    """Maps ``[M, B, C, h, w]`` of one B, dtype and memory order.

    Args:
        maps: none of them empty.
        ranks: place of each in the results.
        outs: first element of the prototypes of each in the results.
    """

    def __init__(self, maps: Sequence[Tensor], ranks: Sequence[int], outs: Sequence[int]) -> None:
        self.maps, self.ranks, self.outs = tuple(maps), tuple(ranks), tuple(outs)
        self.dtype = maps[0].dtype
        self.channels_last = _is_channels_last(maps[0])
        self.batch = maps[0].shape[1]
        self.channels = tuple(x.shape[2] for x in maps)
        self.columns = tuple(x.shape[0] * x.shape[2] for x in maps)
        self.heights = tuple(x.shape[3] for x in maps)
        self.widths = tuple(x.shape[4] for x in maps)
        self.pixels = tuple(x.shape[3] * x.shape[4] for x in maps)
        # of an axis of length one the stride means nothing
        self.strides_m = tuple(x.stride(0) if x.shape[0] > 1 else 0 for x in maps)
        self.strides_b = tuple(x.stride(1) if x.shape[1] > 1 else 0 for x in maps)
        if self.channels_last:
            pixel_strides = zip(self.pixels, map(_pixel_stride, maps), strict=True)
            self.strides_x = tuple(stride or 0 if n > 1 else 0 for n, stride in pixel_strides)
        else:
            self.strides_x = tuple(x.stride(2) if x.shape[2] > 1 else 0 for x in maps)

    @property
    def modalities(self) -> tuple[int, ...]:
        """M of each map."""
        return tuple(len(x) for x in self.maps)

    @property
    def vec(self) -> int:
        """Elements of the widest access, at most 16 bytes, that fits every row and offset."""
        size = self.dtype.itemsize
        inner = self.channels if self.channels_last else self.pixels
        addresses = [x.data_ptr() // size for x in self.maps]
        strides = (*self.strides_m, *self.strides_b, *self.strides_x)
        return math.gcd(16 // size, *inner, *addresses, *strides)

    @property
    def owners(self) -> tuple[int, ...]:
        """For each map the first one of its size: that one counts the classes."""
        sizes = list(zip(self.heights, self.widths, strict=True))
        return tuple(map(sizes.index, sizes))

    def strided(self, labels: Tensor) -> bool:
        """True if the height and width of the label map are multiples of those of every map."""
        height, width = labels.shape[1:]
        return not any(height % h for h in self.heights) and not any(width % w for w in self.widths)

    def tiles(self, block_n: int) -> tuple[int, ...]:
        """Tiles that the columns of each map need: modalities times channels."""
        return tuple(triton.cdiv(n, block_n) for n in self.columns)

    def chunk(self, block_n: int, least: int, most: int, programs: int) -> int:
        """Pixels of a program, a power of two: the most that leave so many programs."""
        return self.chunk_of(self.tiles(block_n), least, most, programs)

    def chunk_of(self, tiles: Sequence[int], least: int, most: int, programs: int) -> int:
        """:meth:`chunk` for so many tiles of each map."""
        chunk = most
        while chunk > least and sum(self._programs(tiles, chunk)) < programs:
            chunk //= 2
        return chunk

    def geometry(self, block_n: int, chunk: int, counting: bool) -> tuple[Maps, int]:
        """The maps as an argument of a kernel, and the number of programs.

        Args:
            block_n: columns of a tile.
            chunk: pixels of a program.
            counting: add a tile, which counts, to the first map of each size.
        """
        tiles = self.tiles(block_n)
        if counting:
            tiles = tuple(
                n + (i == owner)
                for n, (i, owner) in zip(tiles, enumerate(self.owners), strict=True)
            )
        return self.geometry_of(tiles, chunk)

    def geometry_of(self, tiles: tuple[int, ...], chunk: int) -> tuple[Maps, int]:
        """:meth:`geometry` for so many tiles of each map."""
        programs = self._programs(tiles, chunk)
        maps = Maps(
            start=starts_of(programs),
            tiles=tiles,
            C=self.channels,
            columns=self.columns,
            height=self.heights,
            width=self.widths,
            stride_m=self.strides_m,
            stride_b=self.strides_b,
            stride_x=self.strides_x,
            x_ptr=self.maps,
        )
        return maps, sum(programs)

    def _programs(self, tiles: Sequence[int], chunk: int) -> list[int]:
        return [
            n * self.batch * triton.cdiv(pixels, chunk)
            for n, pixels in zip(tiles, self.pixels, strict=True)
        ]


def group_maps(features: Sequence[Tensor], outs: Sequence[int]) -> Iterator[FeatureMaps]:
    """The groups that can share a launch: in a training step one of all maps.

    A map that is contiguous along neither its pixels nor its channels is copied.
    """
    maps = [
        x if _is_channels_last(x) or _pixel_stride(x) == 1 else x.contiguous() for x in features
    ]
    groups: dict[tuple[torch.dtype, bool], list[int]] = {}
    for rank, x in enumerate(maps):
        groups.setdefault((x.dtype, _is_channels_last(x)), []).append(rank)
    for ranks in groups.values():
        yield FeatureMaps([maps[i] for i in ranks], ranks, [outs[i] for i in ranks])


def starts_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """First positions of ranges of these sizes that lie one after the other from 0."""
    return tuple(sum(sizes[:i]) for i in range(len(sizes)))
