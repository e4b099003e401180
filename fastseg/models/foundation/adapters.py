"""Low-rank adapters, one per modality, beside linear layers that all modalities share.

    y[n] = W x[n] + b + s B_m A_m x[n],    m the modality of image n,    s = 2

``A [rank, C]`` is drawn as a linear layer is, ``B [C', rank]`` starts at zero: at first nothing
changes. Source: LoRA, arXiv:2106.09685; queries and values, as there.

The images of all modalities lie in one batch, and each takes the adapter of its own: one pass of
the shared layers serves all, and gradients reach an adapter from its own images alone. (The
mixed batches of the library ``peft`` run in inference only, and its ``set_adapter`` takes one
modality after the other.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SCALE = 2.0
"""Factor s of an adapter: ``lora_alpha`` is twice the rank."""
TARGETS = ("q_proj", "v_proj", "query", "value")
"""Names of the layers with adapters: queries and values, in the words of all backbones."""


class Route:
    """The modality of each image in the batch that is computed.

    Attributes:
        owner: ``[N]`` int64; None outside of a block.
    """

    def __init__(self) -> None:
        self.owner: Tensor | None = None


class AdaptedLinear(nn.Module):
    """A linear layer with an adapter per modality.

    Args:
        base: the layer, which has no other place in the network.
        modalities: their names.
        rank: of the adapters.
        route: says which image is of which modality; one object for a whole encoder.
    """

    def __init__(self, base: nn.Linear, modalities: Sequence[str], rank: int, route: Route) -> None:
        super().__init__()
        self.base_layer = base
        self.route = route
        self.modalities = tuple(modalities)
        # names of peft, see `.peft_files`
        self.lora_A = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(rank, base.in_features)) for name in modalities}
        )
        self.lora_B = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(base.out_features, rank)) for name in modalities}
        )
        for weight in self.lora_A.values():
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[N, T, C]`` to ``[N, T, C']``."""
        owner = self.route.owner
        assert owner is not None
        # of all modalities: each has gradients in every step, zeros where it has no image
        first = torch.stack([self.lora_A[name] for name in self.modalities])[owner]
        second = torch.stack([self.lora_B[name] for name in self.modalities])[owner]
        low = torch.bmm(x, first.transpose(1, 2))
        y: Tensor = self.base_layer(x)
        return y + SCALE * torch.bmm(low, second.transpose(1, 2))


def adapt(block: nn.Module, modalities: Sequence[str], rank: int, route: Route) -> list[str]:
    """Put adapters beside the queries and values of a block, in place; the names of the layers."""
    found = [
        (parent, name, child)
        for parent in block.modules()
        for name, child in parent.named_children()
        if name in TARGETS and isinstance(child, nn.Linear)
    ]
    for parent, name, child in found:
        setattr(parent, name, AdaptedLinear(child, modalities, rank, route))
    return sorted({name for _, name, _ in found})
