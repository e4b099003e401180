"""Linear layers whose bias gets its gradient where the gradient of the result is written anyway.

That gradient is a sum over all tokens: by itself it is a pass over what a kernel has just had in
registers. Values are the same either way. On a CPU the layer is torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.kernels.common.switch import runs_on


def linear(
    layer: nn.Linear, x: Tensor, stand_in: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """``layer(x)``, and its bias where that has no gradient by the result.

    The bias is for the operator that takes the result, as its ``branch_bias`` or ``input_bias``;
    None where the layer sees to the gradient, or none is wanted.

    Args:
        layer: with a bias.
        x: tokens.
        stand_in: of the bias, which takes its place, see `fastseg.models.backbones.parts`.
    """
    learns = torch.is_grad_enabled() and layer.bias.requires_grad
    # as the kernels, float64 is left to torch
    if type(layer) is nn.Linear and learns and x.dtype != torch.float64 and runs_on(x):
        bias = layer.bias if stand_in is None else stand_in
        return F.linear(x, layer.weight, layer.bias.detach()), bias
    return layer(x), None


def linear_in_parts(
    layer: nn.Linear, x: Tensor, stand_in: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """:func:`linear` where the bias has a stand-in; without one the layer sees to its gradient."""
    return (layer(x), None) if stand_in is None else linear(layer, x, stand_in)
