"""Test whether Triton can build and launch kernels here, by a launch like those of a step."""

from __future__ import annotations

import torch

from .common import switch

_LEVELS = ((32, 8), (64, 4), (160, 2), (256, 1))  # channels, and rows and columns
_CLASSES = 2


def settle(device: torch.device) -> None:
    """Launch kernels on a GPU as a step does; where that fails the reference serves from now on.

    A program calls it once, before it relies on kernels. Triton compiles a launcher with the C
    compiler and the Python headers of the machine when a kernel first runs, and images made for
    running programs often have neither. The launch has the nested arguments of a step, which not
    every version of Triton and driver need be able to pass.

    Raises:
        RuntimeError: the mode is ``strict`` and no kernel can be built.
    """
    if device.type != "cuda" or switch.is_off():
        return
    try:
        launch_one(device)
    except Exception as error:  # of the compiler, the linker, the loader, the driver
        switch.turn_off(error)


def launch_one(device: torch.device) -> None:
    """Pool the levels of two networks, and look at what the kernels wrote.

    The sizes are small, the arguments those of a training step: the properties of eight feature
    maps in nested tuples, some 90 integers and pointers, which a launcher of its own unpacks.

    Raises:
        Exception: whatever Triton, its compiler or the driver raise.
    """
    from .prototypes.pool import pool_maps  # imports Triton

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
