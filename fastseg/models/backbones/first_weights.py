"""First weights of a Mix Transformer."""

from __future__ import annotations

import math

import torch
from torch import nn


def spread_bias(conv: nn.Conv2d) -> None:
    """Set the bias to numbers evenly spaced over ``±1 / sqrt(fan_in)``, the range of torch's own.

    An image of zeros leaves the first convolution as its bias. With biases of zero, as the authors
    start from, all tokens of such an image stay zero, and each LayerNorm multiplies their gradient
    by ``1 / sqrt(eps)``, up to 1000: it overflows within a few blocks. The same goes, to a lesser
    degree, for the empty patches of event and LiDAR images.
    """
    reach = 1 / math.sqrt(conv.in_channels * math.prod(conv.kernel_size))
    assert conv.bias is not None
    with torch.no_grad():
        # not drawn: so the weights that are drawn later do not depend on it
        conv.bias.copy_(torch.linspace(-reach, reach, conv.out_channels))


def init_weights(module: nn.Module) -> None:
    """Initialise one layer as the authors do; use with ``model.apply``.

    Linear: normal of std 0.02 cut at ±2, bias 0. Convolution: normal of std ``sqrt(2 / fan_out)``
    with ``fan_out = k * k * C_out / groups``, bias 0. LayerNorm keeps torch's 1 and 0.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
