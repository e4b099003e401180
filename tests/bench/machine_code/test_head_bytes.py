"""Bytes that the kernels of the head read and write, in units of its largest map."""

import pytest
import torch

pytest.importorskip("triton")
from bench.harness.shapes import WIDTHS
from bench.machine_code.aot_mlp_head import launches_of_head, maps, sizes_of


def tensors(arguments):
    for x in arguments:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, tuple):
            yield from tensors(x)


def passes(backbone, channels, frozen=False):
    """Every tensor counts once for each launch that reads or writes it."""
    size, *deeper = sizes_of(1024)
    levels = maps(channels, deeper, 2, torch.bfloat16)
    (first,) = maps(WIDTHS[backbone][0], [size], 2, torch.bfloat16)
    launches = launches_of_head(levels, first, 25, frozen)
    moved = sum(x.nbytes for _, arguments, _ in launches for x in tensors(arguments))
    return moved / (2 * channels * size[0] * size[1] * 2)


# six passes over the map, two over the projected levels, three over the first one and the logits
@pytest.mark.parametrize(("backbone", "most"), [("b0", 7.003), ("b2", 7.2)])
def test_a_training_step_moves_the_map_seven_times(backbone, most):
    assert 6 < passes(backbone, 768) <= most


def test_the_frozen_head_makes_no_map():
    assert passes("b0", 768, frozen=True) < 0.45
