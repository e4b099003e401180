"""Copies of a network's weights in a short dtype, made once per step.

Autocast casts every weight on its own in every step, 250 launches for MiT-B0 with their gradients,
and leaves a LayerNorm and the residual stream in float32 on a GPU but not on a CPU. Here one launch
per few dozen tensors makes all copies, the network runs in the short dtype throughout, and the
gradients arrive in float32 at the weights that the optimizer holds. What has to be exact stays in
float32: BatchNorm, its statistics, and the products of weights inside the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from fastseg.models import Segmenter
from fastseg.models.casting import cast_together


class ShortWeights:
    """The weights of networks in ``dtype`` for the length of a step.

    Args:
        networks: plain ones; their parameters stay in float32 and where they are.
        dtype: such as ``torch.bfloat16``.
    """

    def __init__(self, networks: Iterable[Segmenter], dtype: torch.dtype) -> None:
        self.dtype = dtype
        modules = [module for network in networks for module in network.reduced_modules()]
        self._places = [(m, n) for m in modules for n, p in m._parameters.items() if p is not None]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the networks compute with copies, forward and backward.

        The backward pass belongs inside: with checkpointing it runs blocks again.
        """
        weights = [cast(Tensor, module._parameters[name]) for module, name in self._places]
        try:
            self._put(cast_together(weights, self.dtype))
            yield
        finally:
            self._put(weights)

    def _put(self, tensors: Sequence[Tensor]) -> None:
        for (module, name), tensor in zip(self._places, tensors, strict=True):
            # a copy is not a leaf, and need not be: nobody looks for it among the parameters
            module._parameters[name] = cast(nn.Parameter, tensor)
