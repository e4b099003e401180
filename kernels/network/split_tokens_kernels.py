"""The kernel behind the gradients of queries, keys and values: sums of columns, and a copy."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Rows(NamedTuple):
    """Gradients as an argument of a kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the first program; one entry more, behind the last.
        rows: their number.
        tiles: of a program.
        stride: elements from row to row.
        x_ptr: rows of C contiguous channels.
        out_ptr: the same rows, written if they are copied.
        parts_ptr: ``[programs, C]`` float32, written if they are summed.
        stride_parts: elements from part to part.
    """

    start: Any
    rows: Any
    tiles: Any
    stride: Any
    x_ptr: Any
    out_ptr: Any
    parts_ptr: Any
    stride_parts: Any


@triton.jit
def _go_over(
    x_ptr, out_ptr, parts_ptr, part, R, C, tiles, stride, stride_out, stride_parts,
    COPY: tl.constexpr, SUM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    offs_r, offs_c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    in_c = offs_c < C
    total = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for i in range(0, tiles):
        first = (part.to(tl.int64) * tiles + i) * BLOCK_R
        mask = (offs_r < R - first)[:, None] & in_c[None, :]
        place = (offs_r * stride)[:, None] + offs_c[None, :]
        x = tl.load(x_ptr + first * stride + place, mask=mask, other=0.0)
        if COPY:
            to = (offs_r * stride_out)[:, None] + offs_c[None, :]
            tl.store(out_ptr + first * stride_out + to, x, mask=mask)
        if SUM:
            total += x.to(tl.float32)
    if SUM:
        parts_ptr += part.to(tl.int64) * stride_parts
        tl.store(parts_ptr + offs_c, tl.sum(total, axis=0), mask=in_c)


@triton.jit
def _split_tokens_bwd_kernel(
    rows, C, stride_out,
    COPIES: tl.constexpr, SUMS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Copy some rows, and leave a part of their sum.

    Args:
        rows: :class:`Rows`.
        C: channels.
        stride_out: elements from row to row of the copies.
        COPIES: which rows are copied.
        SUMS: which rows are summed.
        BLOCK_R: rows of a tile.
        BLOCK_C: channels of a tile: all of them.
    """
    pid = tl.program_id(0)
    for i in tl.static_range(len(COPIES)):
        if (pid >= rows.start[i]) & (pid < rows.start[i + 1]):
            _go_over(
                rows.x_ptr[i], rows.out_ptr[i], rows.parts_ptr[i], pid - rows.start[i],
                rows.rows[i], C, rows.tiles[i], rows.stride[i], stride_out, rows.stride_parts[i],
                COPIES[i], SUMS[i], BLOCK_R, BLOCK_C,
            )  # fmt: skip
