"""What several auxiliary modalities have before their common branch: patches and a selection.

Tensors have the axes ``[A, B, h, w, C]``: A auxiliary modalities, the channels last. All of them go
through every operation at once.

Source: CMNeXt, arXiv:2303.01480, section 3.2 (self-query hub); github.com/jamycheung/DELIVER.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HubSelection = Literal["self_query", "mean"]

_NORM_EPS = 1e-6


class SharedPatchEmbed(nn.Module):
    """One patch convolution for all auxiliary modalities, and a LayerNorm for each.

    Args:
        modalities: A.
        in_channels: of the images or of the level before.
        width: C.
        kernel: of the convolution.
        stride: of the convolution.
    """

    def __init__(
        self, modalities: int, in_channels: int, width: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=_NORM_EPS) for _ in range(modalities))

    def forward(self, x: Tensor) -> Tensor:
        """``[A, B, C', H, W]`` to ``[A, B, h, w, C]``."""
        patches = self.proj(x.flatten(0, 1)).permute(0, 2, 3, 1)
        plain = F.layer_norm(patches, patches.shape[-1:], eps=_NORM_EPS)
        norms = [cast(nn.LayerNorm, norm) for norm in self.norms]
        weight, bias = (
            _stacked(vectors)
            for vectors in ([norm.weight for norm in norms], [norm.bias for norm in norms])
        )
        return plain.view(*x.shape[:2], *plain.shape[1:]) * weight + bias


class SelfQueryHub(nn.Module):
    """Scores every pixel of every modality, and selects the largest response.

        s_a = sigmoid(p_a * (d_a * x_a))       d_a: depthwise 3x3, p_a: 1x1 to one channel
        y_a = (1 + s_a) x_a
        hub = max over the modalities a that are there, of each channel and pixel

    Nothing lies between the two convolutions of a score, so they are one convolution to one
    channel: its nine taps are products of a matrix, which are put together at their places. With
    ``mean`` there are no scores: ``y_a = x_a``, and the hub is their mean.

    Args:
        width: C.
        modalities: A.
        selection: ``self_query`` or ``mean``.
    """

    def __init__(self, width: int, modalities: int, selection: HubSelection) -> None:
        super().__init__()
        self.selection = selection
        count = modalities if selection == "self_query" else 0
        self.scores = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, 1, 1)
            )
            for _ in range(count)
        )

    def forward(self, x: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Select.

        Args:
            x: ``[A, B, h, w, C]``.
            there: ``[A, B]`` bool, at least one for each sample; None: all.

        Returns:
            The hub ``[B, h, w, C]``, and all ``y_a`` in the shape of ``x``.
        """
        marks = None if there is None else there.view(*there.shape, 1, 1, 1)
        if self.selection == "mean":
            if marks is None:
                return x.mean(0), x
            weights = marks.to(x.dtype)
            return (x * weights).sum(0) / weights.sum(0), x
        y = x + self._scores(x) * x
        responses = y if marks is None else y.masked_fill(~marks, -torch.inf)
        return responses.amax(0), y

    def _scores(self, x: Tensor) -> Tensor:
        """``[A, B, h, w, 1]``."""
        a, b, h, w, c = x.shape
        taps, offsets = [], []
        for pair in self.scores:
            depthwise, last = (cast(nn.Conv2d, conv) for conv in cast(nn.Sequential, pair))
            assert depthwise.bias is not None
            assert last.bias is not None
            taps.append(depthwise.weight.view(c, 9) * last.weight.view(c, 1))
            offsets.append(last.weight.view(c) @ depthwise.bias + last.bias)
        products = torch.bmm(x.reshape(a, b * h * w, c), torch.stack(taps).to(x.dtype))
        planes = products.view(a * b, h, w, 9).permute(0, 3, 1, 2)
        # tap k of a pixel comes from the neighbour that lies there
        places = torch.eye(9, dtype=planes.dtype, device=planes.device).view(1, 9, 3, 3)
        summed = F.conv2d(planes, places, padding=1).view(a, b, h, w, 1)
        return (summed + torch.stack(offsets).view(a, 1, 1, 1, 1)).sigmoid().to(x.dtype)


def _stacked(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors ``[C]`` of all modalities as ``[A, 1, 1, 1, C]``."""
    stacked = torch.stack(list(vectors))
    return stacked.view(stacked.shape[0], 1, 1, 1, stacked.shape[1])
