"""Instructions per element, as compiled: what the times that are aimed at on a GPU rest on.

Counts are of the longest loop in ``bench/results/aot.csv``, for sm_90, over the elements that a
thread handles in one round of it. The bounds leave the targets within reach: at two thirds of the
issue rate of an H200 the regulariser's 240 are 4 ms of a step at 1024 x 1024, B=2, M=4.
"""

import pytest
import torch

pytest.importorskip("triton")
from bench.machine_code import aot
from fastseg.kernels.entropy import kernel_math
from fastseg.kernels.prototypes import pool
from fastseg.kernels.segmentation import bilinear


def per_thread(tile, *axes):
    elements = 1
    for axis in axes:
        elements *= tile[axis]
    return elements // (32 * tile["num_warps"])


def instructions(kernel, case):
    """The most of any release of Triton in the table."""
    loops = [
        row.loop
        for row in aot.read_table().values()
        if (row.kernel, row.case, row.arch) == (kernel, case, "sm_90")
    ]
    assert min(loops) > 0, "no loop was found in the machine code"
    return max(loops)


def test_pooling_reads_an_element_in_nine_instructions():
    tile = pool.tiles(25, torch.bfloat16)
    elements = per_thread(tile, "BLOCK_P", "BLOCK_N")
    assert instructions("prototype_pool_fwd", "b0-1024-B2-M4-bf16") <= 9.3 * elements


def test_pooling_writes_an_element_of_its_gradient_in_twelve():
    elements = per_thread(pool.tiles_bwd(channels_last=True), "BLOCK_P", "BLOCK_N")
    assert instructions("prototype_pool_bwd", "b0-1024-B2-M4-bf16") <= 12 * elements


def test_the_regulariser_handles_an_element_and_sample_in_240():
    # the loop over the channels: what is in it once, is counted as if it were in every sample; the
    # longest of all levels, whose tiles have the same number of elements
    sides = [(side, side) for side in (256, 128, 64, 32)]
    tiles, warps = kernel_math.pick_tiles(sides, torch.bfloat16)
    elements = {tile.BLOCK_R * tile.BLOCK_D // (32 * warps) for tile in tiles}
    assert len(elements) == 1
    loop = instructions("profile_fwd", "code-1024px-b0-bfloat16")
    assert loop <= 240 * elements.pop()


def test_the_segmentation_loss_handles_a_class_of_a_pixel_in_72():
    pixels = bilinear.ROWS[4] * 4  # of a cell, by a thread
    both = sum(
        instructions(f"segmentation_loss_{way}", "K25-256x256-f4-bf16") for way in ("fwd", "bwd")
    )
    assert both <= 72 * pixels
