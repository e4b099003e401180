"""Pieces of kernels that go over feature maps: whose map, which labels, how many bits."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Maps(NamedTuple):
    """Feature maps ``[M, B, C, h, w]`` as an argument of a kernel: an entry of each field for each.

    A kernel makes the same of its own map, with one value in each field: ``Maps(*of_map(...))``.

    Attributes:
        start: the map's first program.
        tiles: how many programs share its pixels, each with other channels or modalities.
        C: channels.
        columns: M times C.
        height: h.
        width: w.
        stride_m: elements from modality to modality.
        stride_b: elements from sample to sample.
        stride_x: elements from pixel to pixel where the channels are contiguous, from channel to
            channel where the pixels are.
        x_ptr: the features.
    """

    start: Any
    tiles: Any
    C: Any
    columns: Any
    height: Any
    width: Any
    stride_m: Any
    stride_b: Any
    stride_x: Any
    x_ptr: Any


@triton.jit
def of_map(start, fields, pid):
    """The entry of each field for the map of program ``pid``; ``start`` are the first programs."""
    found = ()
    for f in tl.static_range(len(fields)):
        value = fields[f][0]
        for i in tl.static_range(1, len(start)):
            value = tl.where(pid >= start[i], fields[f][i], value)
        found = found + (value,)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.jit
def sample_labels(labels_ptr, offs_p, height, width, H, W, stride_h, stride_w, K,
                  STRIDED: tl.constexpr):  # fmt: skip
    """Class of each pixel of a level, -1 for none: the nearest label of the full-size map."""
    row = offs_p // width
    column = offs_p - row * width
    if STRIDED:
        y, x = row * (H // height), column * (W // width)
    else:
        y, x = row * H // height, column * W // width
    in_map = offs_p < height * width
    ptrs = labels_ptr + (y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w)
    # int64 before the comparison: a uint8 would wrap around, an int64 would lose its high bits
    label = tl.load(ptrs, mask=in_map, other=0).to(tl.int64)
    return tl.where((label >= 0) & (label < K) & in_map, label, -1).to(tl.int32)


@triton.jit
def tf32_halves(x):
    """Float32 as a sum of two tf32 numbers of 11 bits; the second may lose its last bit."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    upper = bits.to(tl.float32, bitcast=True)
    return upper, x - upper
