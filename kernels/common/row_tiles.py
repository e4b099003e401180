"""Tiles of whole rows, and the programs that sum over them; imports without Triton.

A program of a kernel that sums over all tokens goes over some tiles of them and leaves its part of
the sum. How many parts there are depends on the sizes alone, so it is known before the launch.
"""

from __future__ import annotations

# at most and at least: some for each of the 132 multiprocessors of an H200, but few enough that
# their parts are small beside the rows
_PROGRAMS, _LEAST_TILES = 1024, 8
MAX_CHANNELS = 4096  # a tile holds all of them


def row_tile(channels: int, elements: int) -> dict[str, int]:
    """A tile with so many elements for a thread, more where a row has more."""
    block_c = 1 << (channels - 1).bit_length()
    warps = 4 if block_c <= 256 else 8
    rows = max(1, 32 * warps * elements // block_c)
    return {"BLOCK_R": min(128, rows), "BLOCK_C": block_c, "num_warps": warps}


def summing_tile(channels: int) -> dict[str, int]:
    """The tile of a kernel that sums: it holds several tensors and sums.

    Where channels are loaded one by one, their addresses take registers, too.
    """
    return row_tile(channels, 4 if channels % 16 else 8)


def summing_programs(rows: int, channels: int) -> tuple[int, int]:
    """Programs that sum over so many rows, and the tiles of each."""
    blocks = -(-rows // summing_tile(channels)["BLOCK_R"])
    each = min(blocks, max(_LEAST_TILES, -(-blocks // _PROGRAMS)))
    return -(-blocks // each), each
