"""Pieces of kernels that go over feature maps: whose map, which labels, how many bits."""

import triton
import triton.language as tl


@triton.jit
def of_map(fields, pid):
    """The entry of each field for the map of a program; field 0 is the map's first program."""
    found = ()
    for f in tl.static_range(len(fields)):
        value = fields[f][0]
        for i in tl.static_range(1, len(fields[0])):
            value = tl.where(pid >= fields[0][i], fields[f][i], value)
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
