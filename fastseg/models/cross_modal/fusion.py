"""Two branches of a level: each is corrected by the other, then both become one map.

Feature rectification (FRM), with ``x``, ``z`` the branches:

    c_x, c_z = sigmoid(mlp([mean x, mean z, max x, max z]))        over the pixels, [N, C] each
    s_x, s_z = sigmoid(convs([x, z]))                              [N, 1, h, w] each
    x' = x + (c_z + s_z) / 2 z,     z' = z + (c_x + s_x) / 2 x

Feature fusion (FFM), in each branch with ``[y, u] = relu(L x)``, ``[k, v] = K u``:

    G_x = softmax over the rows of (k^T v / sqrt(d))       d x d per head: the cost is linear
    x'  = norm(x + E [y, u G_z])                           queries of the other's context
    out = bn(R [x', z'] + bn(convs [x', z']))

Sums over all pixels, as in ``k^T v``, are taken in float32 whatever the dtype of the step is: those
of 1024 x 1024 images do not fit into float16.

Source: CMX, arXiv:2203.04838, sections 3.2 and 3.3; parameter names and layers are those of
github.com/huaaaliu/RGBX_Semantic_Segmentation, net_utils.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..backbones.first_weights import init_weights
from ..backbones.norms import normalise
from ..precision import full_precision


class Rectification(nn.Module):
    """FRM of tokens ``[N, h, w, C]``.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channel_weights = nn.ModuleDict(
            {
                "mlp": nn.Sequential(
                    nn.Linear(4 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 2 * width)
                )
            }
        )
        self.spatial_weights = nn.ModuleDict(
            {
                "mlp": nn.Sequential(
                    nn.Conv2d(2 * width, width, 1), nn.ReLU(), nn.Conv2d(width, 2, 1)
                )
            }
        )
        self.apply(init_weights)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches, rectified."""
        n, c = x.shape[0], x.shape[-1]
        both = torch.cat([x, z], -1)
        pooled = torch.cat([both.mean((1, 2)), both.amax((1, 2))], 1)
        channels = self.channel_weights["mlp"](pooled).sigmoid().view(n, 2, 1, 1, c)
        pixels = self.spatial_weights["mlp"](both.permute(0, 3, 1, 2)).sigmoid().unsqueeze(-1)
        of_x, of_z = (0.5 * (channels[:, i] + pixels[:, i]).to(x.dtype) for i in (0, 1))
        return torch.addcmul(x, of_z, z), torch.addcmul(z, of_x, x)


class CrossPath(nn.Module):
    """The exchange of two branches by linear attention, see the head of this file.

    Args:
        width: C.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.channel_proj1 = nn.Linear(width, 2 * width)
        self.channel_proj2 = nn.Linear(width, 2 * width)
        self.cross_attn = nn.ModuleDict(
            {name: nn.Linear(width, 2 * width, bias=False) for name in ("kv1", "kv2")}
        )
        self.end_proj1 = nn.Linear(2 * width, width)
        self.end_proj2 = nn.Linear(2 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``[N, h, w, C]`` of both branches to the same."""
        y_x, u_x = self.channel_proj1(x).relu().chunk(2, -1)
        y_z, u_z = self.channel_proj2(z).relu().chunk(2, -1)
        read_x = self._read(u_x, self._context(self.cross_attn["kv2"](u_z)))
        read_z = self._read(u_z, self._context(self.cross_attn["kv1"](u_x)))
        x = x + self.end_proj1(torch.cat([y_x, read_x], -1))
        z = z + self.end_proj2(torch.cat([y_z, read_z], -1))
        return normalise(self.norm1, x), normalise(self.norm2, z)

    def _context(self, keys_values: Tensor) -> Tensor:
        """``[N, h, w, 2 C]`` to ``[N, heads, d, d]``, float32 or more."""
        n, h, w, _ = keys_values.shape
        wide = keys_values.to(torch.promote_types(keys_values.dtype, torch.float32))
        k, v = wide.view(n, h * w, 2, self.heads, -1).unbind(2)
        with full_precision(wide.device):
            sums = k.permute(0, 2, 3, 1) @ v.transpose(1, 2)
            return (sums / math.sqrt(k.shape[-1])).softmax(-2)

    def _read(self, u: Tensor, context: Tensor) -> Tensor:
        """``u [N, h, w, C]`` times the context of its head."""
        n, h, w, c = u.shape
        queries = u.reshape(n, h * w, self.heads, -1).transpose(1, 2)
        return (queries @ context.to(u.dtype)).transpose(1, 2).reshape(n, h, w, c)


class ChannelEmbed(nn.Module):
    """Both branches beside each other to one map.

    Args:
        width: C.
        norm_momentum: share of the newest batch in the statistics of both BatchNorms.
    """

    def __init__(self, width: int, norm_momentum: float) -> None:
        super().__init__()
        self.residual = nn.Conv2d(2 * width, width, 1, bias=False)
        self.channel_embed = nn.Sequential(
            nn.Conv2d(2 * width, width, 1),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width, momentum=norm_momentum),
        )
        self.norm = nn.BatchNorm2d(width, momentum=norm_momentum)

    def forward(self, both: Tensor) -> Tensor:
        """``[N, 2 C, h, w]`` to ``[N, C, h, w]``."""
        fused: Tensor = self.norm(self.residual(both) + self.channel_embed(both))
        return fused


class Fusion(nn.Module):
    """FFM of tokens ``[N, h, w, C]``.

    Args:
        width: C.
        heads: attention heads.
        norm_momentum: share of the newest batch in the statistics of both BatchNorms.
    """

    def __init__(self, width: int, heads: int, norm_momentum: float) -> None:
        super().__init__()
        self.cross = CrossPath(width, heads)
        self.channel_emb = ChannelEmbed(width, norm_momentum)
        self.apply(init_weights)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """The fused level ``[N, C, h, w]``, the channels last in memory."""
        x, z = self.cross(x, z)
        fused: Tensor = self.channel_emb(torch.cat([x, z], -1).permute(0, 3, 1, 2))
        return fused
