"""SegFormer's all-MLP head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.kernels import folded_projections, mlp_head, sum_of_upsampled
from fastseg.models.casting import cast_together
from fastseg.models.precision import full_precision


class MLPHead(nn.Module):
    """SegFormer's head, with each level's projection folded into the fusing convolution.

        logits = P dropout(relu(bn(W [up(L_4 c_4 + a_4), up(L_3 c_3 + a_3), .., L_1 c_1 + a_1])))

    Nothing non-linear lies between the projections ``L_i`` and the 1x1 convolution
    ``W = [W_4 W_3 W_2 W_1]``, and bilinear interpolation commutes with both, as its weights sum to
    1. So the map before the BatchNorm is ``sum_i up((W_i L_i) c_i) + sum_i W_i a_i``: every level
    is projected once, at its own resolution. At E = 768 and 1024 x 1024 that is 4.7 instead of
    159 GMAC for MiT-B0, and the ``[B, 4 E, H / 4, W / 4]`` tensor is never made. Parameters,
    gradients and checkpoints are those of the plain form.

    Args:
        widths: ``C_1..C_4`` of the encoder.
        num_classes: K.
        embed_dim: E.
        dropout: probability that a channel of the fused map is dropped in training.
        norm_momentum: share of the newest batch in the running statistics of the BatchNorm.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        embed_dim: int,
        dropout: float,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(4 * embed_dim, embed_dim, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        # the dictionaries only spell the names of the published checkpoints
        for i, width in enumerate(widths, start=1):
            self.add_module(f"linear_c{i}", nn.ModuleDict({"proj": nn.Linear(width, embed_dim)}))
        norm = nn.BatchNorm2d(embed_dim, momentum=norm_momentum)
        self.linear_fuse = nn.ModuleDict({"conv": conv, "bn": norm})
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = nn.Conv2d(embed_dim, num_classes, 1)
        self._constant: tuple[list[Tensor], Tensor] | None = None

    def folded(self, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        """``W_i L_i`` of levels 1 to 4, each ``[E, C_i]``, and ``sum_i W_i a_i``, ``[E]``."""
        conv = cast(nn.Conv2d, self.linear_fuse["conv"])
        projections = [cast(nn.Linear, getattr(self, f"linear_c{i}")["proj"]) for i in range(1, 5)]
        # products of parameters are small: keep them in full precision under autocast
        with full_precision(conv.weight.device):
            *weights, bias = folded_projections(
                conv.weight.flatten(1),
                [proj.weight for proj in projections],
                [proj.bias for proj in projections],
                dtype,
            )
        return weights, bias

    def freeze(self, dtype: torch.dtype) -> None:
        """Keep the products, with the BatchNorm of the evaluation in them, as constants."""
        self._constant = self._normalised(dtype)
        self.linear_pred.to(dtype)

    @torch.no_grad()
    def _normalised(self, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        """`folded` with the BatchNorm of the evaluation in it, constant."""
        norm = cast(nn.BatchNorm2d, self.linear_fuse["bn"])
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weights, bias = self.folded(norm.weight.dtype)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = scale * (bias - norm.running_mean) + norm.bias
        return [(scale[:, None] * w).to(dtype) for w in weights], bias.to(dtype)

    def constants(self) -> list[Tensor]:
        """Tensors that :meth:`freeze` has made, beside parameters and buffers."""
        return [] if self._constant is None else [*self._constant[0], self._constant[1]]

    def draw(self, features: Sequence[Tensor]) -> Tensor | None:
        """A random factor ``[B, E]`` for the channels of the fused map; None without dropout."""
        p = self.dropout.p
        if not self.training or p == 0:
            return None
        shape = (len(features[0]), self.linear_pred.in_channels)
        return features[0].new_empty(shape).bernoulli_(1 - p).div_(1 - p)

    def forward(self, features: Sequence[Tensor], factor: Tensor | None = None) -> Tensor:
        """Four fused levels ``[B, C_i, h_i, w_i]`` to logits ``[B, K, h_1, w_1]``.

        Nothing in here is random, so that it can be compiled.

        Args:
            features: the levels; best with the channels last in memory.
            factor: factor on the channels of the fused map, as drawn by :meth:`draw`; none for 1.
        """
        dtype = features[0].dtype
        weights, bias = self._constant or self.folded(dtype)
        *weights, bias = cast_together([*weights, bias], dtype)  # those of a frozen head
        # the bias is added where the map is smallest
        offsets = [None, None, bias]
        levels = [
            _projected(*parts) for parts in zip(features[1:], weights[1:], offsets, strict=True)
        ]
        norm = None if self._constant else cast(nn.BatchNorm2d, self.linear_fuse["bn"])
        weight, bias = self.linear_pred.weight.flatten(1), cast(Tensor, self.linear_pred.bias)
        return mlp_head(levels, features[0], weights[0], weight, bias, norm, factor)

    @torch.no_grad()
    def before_relu(self, features: Sequence[Tensor]) -> Tensor:
        """The map that the ReLU of the evaluation reads, an affine function of the levels.

        Args:
            features: four levels ``[B, C_i, h_i, w_i]``; best with the channels last in memory.

        Returns:
            ``[B, h_1 w_1, E]``, normalised by the running statistics.
        """
        weights, bias = self._constant or self._normalised(features[0].dtype)
        offsets = [None, None, bias]
        levels = [
            _projected(*parts) for parts in zip(features[1:], weights[1:], offsets, strict=True)
        ]
        first = features[0]
        deeper = sum_of_upsampled(levels, first.shape[2:]).permute(0, 2, 3, 1).flatten(1, 2)
        return deeper.add_(F.linear(first.permute(0, 2, 3, 1).flatten(1, 2), weights[0]))

    def classify(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Logits ``[B, K, h_1, w_1]`` of `before_relu` maps, whose values are lost.

        Args:
            maps: ``[B, h_1 w_1, E]``.
            size: ``(h_1, w_1)``.
        """
        weight = self.linear_pred.weight.flatten(1)
        logits = F.linear(F.relu(maps, inplace=True), weight, self.linear_pred.bias)
        return logits.transpose(1, 2).view(len(maps), -1, *size)


def _projected(level: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A level times its projection, the channels last in memory."""
    n, c, h, w = level.shape
    pixels = F.linear(level.permute(0, 2, 3, 1).reshape(-1, c), weight, bias)
    return pixels.view(n, h, w, -1).permute(0, 3, 1, 2)
