"""CMNeXt's branch for all modalities but the hub: parallel pooling mixers (PPX).

    u  = d * bn_1(x)                                        d: depthwise 7x7, with bias
    x' = x + l_1 g (1 + sigmoid(p * (u + pool_3(u) + pool_7(u) + pool_11(u)))),   g = bn_1(x)
    x''= eca(x') x' + l_2 mlp(bn_2(x'))

Pools are means over the pixels of a square that lie in the map; ``eca`` is a gate per channel: mean
over all pixels, a 1-D convolution over three neighbouring channels, sigmoid. The MLP is the Mix
Transformer's, ``l`` are layer scales, from 0.01.

Source: CMNeXt, arXiv:2303.01480, section 3.3; github.com/jamycheung/DELIVER, mspa.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.first_weights import init_weights, spread_bias
from ..backbones.mit import Backbone, Mlp
from ..backbones.norms import normalise
from .hub import HubSelection, SelfQueryHub, SharedPatchEmbed

_POOLS = (3, 7, 11)
_MLP_RATIOS = (8, 8, 4, 4)
_SCALE = 1e-2
_NORM_EPS = 1e-6


class PoolingAttention(nn.Module):
    """``x (1 + sigmoid(p * (u + sum of pools of u)))`` with ``u = d * x``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.conv4 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` to the same shape."""
        u = self.conv0(x)
        pools = [F.avg_pool2d(u, side, 1, side // 2, count_include_pad=False) for side in _POOLS]
        gate: Tensor = self.conv4(u + sum(pools)).sigmoid()
        return torch.addcmul(x, x, gate.to(x.dtype))


class PoolingBlock(nn.Module):
    """A parallel pooling mixer on tokens; nothing in it is random.

    Args:
        width: C.
        mlp_ratio: hidden channels of the MLP over C.
        norm_momentum: share of the newest batch in the running statistics of both BatchNorms.
    """

    def __init__(self, width: int, mlp_ratio: int, norm_momentum: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width, momentum=norm_momentum)
        self.attn = PoolingAttention(width)
        self.norm2 = nn.BatchNorm2d(width, momentum=norm_momentum)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), _SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), _SCALE))

    def forward(self, x: Tensor, first: Tensor | None, second: Tensor | None) -> Tensor:
        """Tokens ``[N, h, w, C]`` to the same shape.

        Args:
            x: the tokens.
            first: factor of the first branch ``[N, 1, 1, 1]``, see `MixTransformer.draw`; None: 1.
            second: that of the second one.
        """
        mixed = _tokens(self.attn(self.norm1(_maps(x))))
        x = x + _scaled(mixed, self.layer_scale_1, first)
        gate: Tensor = self.gate(x.mean((1, 2)).unsqueeze(1)).sigmoid().to(x.dtype)
        branch, _ = self.mlp(_tokens(self.norm2(_maps(x))))
        return x * gate.unsqueeze(1) + _scaled(branch, self.layer_scale_2, second)


class PoolingBranch(nn.Module):
    """The common branch of A auxiliary modalities, level by level.

    Args:
        config: widths and depths; heads and reductions are not read.
        modalities: A, at least 1.
        norm_momentum: share of the newest batch in the statistics of the BatchNorms.
        selection: how several modalities become one map.
        scramble: between levels, the features of several modalities take part in another order of
            their numbers: as released code has it, which reads ``[B, C, h, w]`` as if it were
            ``[B, h, w, C]``. Released weights need it; pixels and channels are mixed up by it.
    """

    def __init__(
        self,
        config: Backbone,
        modalities: int,
        norm_momentum: float,
        selection: HubSelection,
        scramble: bool,
    ) -> None:
        super().__init__()
        self.scramble = scramble
        self.embeds, self.hubs = nn.ModuleList(), nn.ModuleList()
        self.blocks, self.norms = nn.ModuleList(), nn.ModuleList()
        inside = 3
        for level, width in enumerate(config.widths):
            shape = (7, 4) if level == 0 else (3, 2)
            self.embeds.append(SharedPatchEmbed(modalities, inside, width, *shape))
            if modalities > 1:
                self.hubs.append(SelfQueryHub(width, modalities, selection))
            self.blocks.append(
                nn.ModuleList(
                    PoolingBlock(width, _MLP_RATIOS[level], norm_momentum)
                    for _ in range(config.depths[level])
                )
            )
            self.norms.append(nn.LayerNorm(width, eps=_NORM_EPS))
            inside = width
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, PoolingBlock):
                _as_convolution(module.mlp.fc1)
                _as_convolution(module.mlp.fc2)
        spread_bias(cast(SharedPatchEmbed, self.embeds[0]).proj)

    def run_level(
        self, level: int, x: Tensor, there: Tensor | None, factors: Iterator[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """One level.

        Args:
            level: from 0.
            x: images ``[A, B, 3, H, W]``, or what :meth:`onward` gave.
            there: ``[A, B]`` bool, the modalities that the hub selects from; None: all.
            factors: of the residual branches of this level and those behind it.

        Returns:
            Tokens ``[B, h, w, C]`` after the norm; and what is left of each modality for
            :meth:`onward`, None for a single one.
        """
        tokens, own = self.embeds[level](x), None
        if len(tokens) > 1:
            y, own = self.hubs[level](tokens, there)
        else:
            y = tokens[0]
        for block in cast(nn.ModuleList, self.blocks[level]):
            y = block(y, next(factors), next(factors))
        return normalise(self.norms[level], y), own

    def own_parameters(self, modality: int) -> list[nn.Parameter]:
        """Norms and scores of an auxiliary modality, by its position among them."""
        embeds = [cast(SharedPatchEmbed, embed).norms for embed in self.embeds]
        hubs = [cast(SelfQueryHub, hub).scores for hub in self.hubs]
        modules = [of[modality] for of in (*embeds, *hubs) if len(of)]
        return [p for module in modules for p in module.parameters()]

    def onward(self, y: Tensor, own: Tensor | None) -> Tensor:
        """Input ``[A, B, C, h, w]`` of the next level from the rectified tokens ``[B, h, w, C]``.

        Each modality takes its own features along, added to the common ones.
        """
        if own is None:
            return _maps(y).unsqueeze(0)
        if self.scramble:
            own = own.movedim(-1, 2).reshape(own.shape)
        return (own + y).movedim(-1, 2)


def _maps(tokens: Tensor) -> Tensor:
    """``[N, h, w, C]`` as ``[N, C, h, w]``."""
    return tokens.permute(0, 3, 1, 2)


def _tokens(maps: Tensor) -> Tensor:
    """``[N, C, h, w]`` as ``[N, h, w, C]``."""
    return maps.permute(0, 2, 3, 1)


def _scaled(branch: Tensor, scale: Tensor, factor: Tensor | None) -> Tensor:
    scaled = branch * scale
    return scaled if factor is None else scaled * factor.to(scaled.dtype)


def _as_convolution(layer: nn.Linear) -> None:
    """First weights of a 1x1 convolution, which these layers are in the published code."""
    with torch.no_grad():
        layer.weight.normal_(0, math.sqrt(2.0 / layer.out_features))
