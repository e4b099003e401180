"""A launch like those of a training step, to find out whether Triton can build and launch them."""

from __future__ import annotations

import torch

from .prototypes.pool import pool_maps

_LEVELS = ((32, 8), (64, 4), (160, 2), (256, 1))  # channels, and rows and columns
_CLASSES = 2


def launch_one(device: torch.device) -> None:
    """Pool the levels of two networks, and look at what the kernels wrote.

    The sizes are small, the arguments those of a training step: the properties of eight feature
    maps in nested tuples, some 90 integers and pointers, which a launcher of its own unpacks.

    Raises:
        Exception: whatever Triton, its compiler or the driver raise.
    """
    maps = (*_LEVELS, *_LEVELS)
    features = [
        torch.full((1, 1, side, side, channels), float(number), dtype=torch.float16, device=device)
        for number, (channels, side) in enumerate(maps, start=1)
    ]
    labels = torch.zeros((1, 32, 32), dtype=torch.uint8, device=device)
    means, counts = pool_maps([x.movedim(4, 2) for x in features], labels, _CLASSES, False)
    # all pixels are of the first class
    wanted = [
        torch.tensor([number, 0.0]).repeat_interleave(channels)
        for number, (channels, _) in enumerate(maps, start=1)
    ]
    pixels = torch.tensor([[[side**2, 0]] for _, side in maps])
    if not (torch.equal(means.cpu(), torch.cat(wanted)) and torch.equal(counts.cpu(), pixels)):
        raise RuntimeError("kernels were launched and have written wrong numbers, or nothing")
