"""Sums over the rows of many matrices in one launch, such as the parts of parameters' gradients.

A program adds up some columns of one matrix, tile after tile of rows in their order: a result
repeats bit by bit, and does not depend on what else the launch has to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on_device_of
from .rounding import rounded_to
from .switch import DEVICES, UP

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST = 16  # matrices of a launch: each has a body of the kernel
_TILE = {"BLOCK_P": 256, "BLOCK_C": 16, "num_warps": 8}


class Matrices(NamedTuple):
    """Matrices as an argument of a kernel: every field is a tuple with an entry for each.

    Attributes:
        start: the matrix's first program; one entry more, behind the last.
        rows: their number.
        columns: their number.
        stride: elements from row to row.
        x_ptr: float32, with contiguous columns.
        out_ptr: ``[columns]``, written.
    """

    start: Any
    rows: Any
    columns: Any
    stride: Any
    x_ptr: Any
    out_ptr: Any


@triton.jit
def _sums_of_matrix(
    x_ptr, out_ptr, block, rows, columns, stride,
    UP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    offs_p = tl.arange(0, BLOCK_P)
    offs_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for first in range(0, rows, BLOCK_P):
        mask = (first + offs_p < rows)[:, None] & (offs_c < columns)[None, :]
        place = ((first + offs_p) * stride)[:, None] + offs_c[None, :]
        total += tl.load(x_ptr + place, mask=mask, other=0.0)
    found = rounded_to(tl.sum(total, axis=0), out_ptr.dtype.element_ty, UP)
    tl.store(out_ptr + offs_c, found, mask=offs_c < columns)


@triton.jit
def _row_sums_kernel(
    matrices, COUNT: tl.constexpr, UP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Sums of some columns of a matrix over its rows.

    Args:
        matrices: :class:`Matrices`.
        COUNT: their number.
        UP: round to bfloat16 by hand, as the interpreter does not.
        BLOCK_P: rows of a tile.
        BLOCK_C: columns of a program.
    """
    pid = tl.program_id(0)
    for i in tl.static_range(COUNT):
        if (pid >= matrices.start[i]) & (pid < matrices.start[i + 1]):
            _sums_of_matrix(
                matrices.x_ptr[i], matrices.out_ptr[i], pid - matrices.start[i],
                matrices.rows[i], matrices.columns[i], matrices.stride[i], UP, BLOCK_P, BLOCK_C,
            )  # fmt: skip


def launch_row_sums(matrices: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write the sums, a launch for up to `MOST` matrices."""
    for i in range(0, len(matrices), MOST):
        some, to = tuple(matrices[i : i + MOST]), tuple(out[i : i + MOST])
        programs = [triton.cdiv(x.shape[1], _TILE["BLOCK_C"]) for x in some]
        start = (0, *accumulate(programs))
        with on_device_of(some[0]):
            _row_sums_kernel[(start[-1],)](
                Matrices(
                    start, tuple(len(x) for x in some), tuple(x.shape[1] for x in some),
                    tuple(x.stride(0) for x in some), some, to,
                ),
                COUNT=len(some), UP=UP, **_TILE,
            )  # fmt: skip


def _sums(matrices: Sequence[Tensor], dtypes: Sequence[int]) -> list[Tensor]:
    """Memory for the sums."""
    return [
        x.new_empty(x.shape[1], dtype=DTYPES[dtype])
        for x, dtype in zip(matrices, dtypes, strict=True)
    ]


@torch.library.custom_op("fastseg::row_sums", mutates_args=(), device_types=DEVICES)
def _row_sums(matrices: Sequence[Tensor], dtypes: Sequence[int]) -> list[Tensor]:
    found = _sums(matrices, dtypes)
    launch_row_sums([x if x.stride(1) == 1 else x.contiguous() for x in matrices], found)
    return found


@_row_sums.register_fake
def _(matrices: Sequence[Tensor], dtypes: Sequence[int]) -> list[Tensor]:
    return _sums(matrices, dtypes)


def row_sums(matrices: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """``[x.sum(0) for x in matrices]`` by one launch, without gradients.

    Args:
        matrices: ``[P, C]`` float32, not empty; whatever has contiguous columns is read in place.
        dtypes: of the sums, which are made in float32.
    """
    found: list[Tensor] = _row_sums(list(matrices), [DTYPES.index(dtype) for dtype in dtypes])
    return found
