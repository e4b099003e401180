"""An exponential moving average of the weights, beside the weights that learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastseg.checkpoint.contents import averaged_parameters
from fastseg.distributed.sharded_tensors import local_part, whole


class WeightAverage:
    """``e_t = e_(t-1) + (1 - d_t) (w_t - e_(t-1))`` with ``d_t = min(decay, (1 + t) / (10 + t))``.

    The smaller first decays let a short run forget its random start. Only parameters are averaged;
    buffers such as BatchNorm statistics are averages already and are taken as they are. A skipped
    step changes nothing. Sharded weights have sharded averages.

    Args:
        module: gives the parameters; its present weights are the first average.
        decay: in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._params = averaged_parameters(module)
        self._averages = {name: p.detach().clone() for name, p in self._params.items()}

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Take in the weights after step number ``step``, counted from 0; nothing waits."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = [local_part(average) for average in self._averages.values()]
        weights = [local_part(p.detach()) for p in self._params.values()]
        moves = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(moves, share * (1 - skipped))
        torch._foreach_add_(averages, moves)

    def own(self) -> dict[str, Tensor]:
        """This process's averages by parameter name, sharing memory; they may be shards."""
        return dict(self._averages)

    def tensors(self) -> dict[str, Tensor]:
        """The full averages by parameter name, on the CPU; collective."""
        return {name: whole(average) for name, average in self._averages.items()}
