"""Parameters that do not move in a step, as a method decides on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastseg.distributed.sharded_tensors import local_part


@contextmanager
def holding_still(module: nn.Module, still: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block an optimizer steps; marked parameters are then what they were, bit for bit.

    Their moments take in the gradient of the step all the same, which is zero for a part that the
    loss does not reach. The marks stay on the device, so nothing waits.

    Args:
        module: the networks that learn.
        still: bool scalars by prefix of the names of the parameters that they stand for.
    """
    before = [
        (own := local_part(parameter.detach()), own.clone(), stays)
        for prefix, stays in still.items()
        for name, parameter in module.named_parameters()
        if name.startswith(prefix)
    ]
    yield
    for own, old, stays in before:
        own.copy_(torch.where(stays, old, own))
