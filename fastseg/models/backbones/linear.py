"""Linear layers whose bias gets its gradient where the gradient of the result is written anyway.

That gradient is a sum over all tokens: by itself it is a pass over what a kernel has just had in
registers. Values are the same either way. On a CPU the layer is torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.kernels.common.switch import runs_on


def linear(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """``layer(x)``, and its bias where that has no gradient by the result.

    The bias is for the operator that takes the result, as its ``branch_bias`` or ``input_bias``;
    None where the layer sees to the gradient, or none is wanted.
    """
    learns = torch.is_grad_enabled() and layer.bias.requires_grad
    # as the kernels, float64 is left to torch
    if type(layer) is nn.Linear and learns and x.dtype != torch.float64 and runs_on(x):
        return F.linear(x, layer.weight, layer.bias.detach()), layer.bias
    return layer(x), None
