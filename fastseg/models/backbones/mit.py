"""The Mix Transformer (MiT), SegFormer's hierarchical encoder.

Four levels of strides 4, 8, 16 and 32. Each opens with an overlapping patch convolution and runs
transformer blocks whose keys and values come from a spatially reduced copy of the tokens. There is
no positional embedding: the depthwise 3x3 inside the MLP sees the zero padding.

Source: SegFormer, arXiv:2105.15203, section 3.1 and the authors' released hyper-parameters. Written
from the paper; module names follow the released weights, so that their files load unchanged. First
weights are the authors' but for one bias, which keeps the gradient of a blank image finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastseg.errors import ConfigError
from fastseg.kernels import depthwise_conv_gelu
from fastseg.pipelines.tools.unknown import unknown

from .attention import Attention
from .first_weights import init_weights, spread_bias
from .linear import linear, linear_in_parts
from .norms import add_and_normalise, normalise
from .parts import block_parts, norm_parts
from .stochastic_depth import stochastic_depth

# the released weights were trained with 1e-6 in blocks and after levels, and with torch's default
# of 1e-5 in the patch embeddings and after the spatial reduction
_BLOCK_EPS = 1e-6


@dataclass(frozen=True)
class Backbone:
    """The hyper-parameters of one Mix Transformer, one entry per level.

    Attributes:
        widths: channels ``C_1..C_4``; each a multiple of its number of heads.
        depths: transformer blocks.
        heads: attention heads.
        reductions: side of the square of tokens that becomes one key and value.
        mlp_ratio: hidden channels of the MLP over ``C_i``, the same at all levels.

    Raises:
        ConfigError: an entry is not positive or a width does not divide into its heads.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        if min(*self.widths, *self.depths, *self.heads, *self.reductions, self.mlp_ratio) < 1:
            raise ConfigError(f"every entry of a backbone must be at least 1, got {self}")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise ConfigError(f"width {width} is not a multiple of its {heads} heads")


BACKBONES: dict[str, Backbone] = {
    # not in the paper: small enough to train on two CPU cores in minutes
    "mit_nano": Backbone((16, 32, 64, 128), (1, 1, 1, 1), heads=(1, 2, 4, 8)),
    "mit_b0": Backbone((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": Backbone((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": Backbone((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": Backbone((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": Backbone((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": Backbone((64, 128, 320, 512), (3, 6, 40, 3)),
}


def get_backbone(name: str) -> Backbone:
    """The hyper-parameters registered as ``name``.

    Raises:
        ConfigError: there is no such backbone; the message suggests the nearest name.
    """
    if name not in BACKBONES:
        raise ConfigError(unknown("backbone", name, BACKBONES))
    return BACKBONES[name]


class PatchEmbed(nn.Module):
    """Overlapping patches: a strided convolution and a LayerNorm."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, stand_in: Tensor | None = None) -> Tensor:
        """``[N, C, H, W]`` to tokens ``[N, h, w, width]``, ``h = ceil(H / stride)``.

        For the stand-in of the norm see `.parts`.
        """
        return normalise(self.norm, self.proj(x).permute(0, 2, 3, 1), stand_in)


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel alone, then GELU; it also carries the position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, input_bias: Tensor | None = None) -> Tensor:
        """Tokens ``[N, h, w, C]`` to the same shape; for the bias in them see :func:`linear`."""
        bias = cast(Tensor, self.dwconv.bias)
        return depthwise_conv_gelu(x, self.dwconv.weight, bias, input_bias)


class Mlp(nn.Module):
    """Linear, depthwise 3x3, GELU, linear (the paper's Mix-FFN)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, stand_in: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[N, h, w, C]`` to the same shape, and the bias in them, see :func:`linear`.

        The stand-in is of that bias.
        """
        return linear_in_parts(self.fc2, self.dwconv(*linear(self.fc1, x)), stand_in)


class Block(nn.Module):
    """Pre-norm transformer block: ``x += attn(norm1(x))``, then ``x += mlp(norm2(x))``.

    It leaves its second sum to whoever normalises next, the block behind it or the level's norm,
    for there it costs no pass over the tokens of its own.
    """

    def __init__(self, width: int, heads: int, reduction: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_BLOCK_EPS)
        self.attn = Attention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=_BLOCK_EPS)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        factors: tuple[Tensor | None, Tensor | None] = (None, None),
        branch_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens and the branch that is to be added to them, to the same of the next block.

        Nothing in here is random: it can be compiled, and computed again for its gradient.

        Args:
            x: tokens ``[N, h, w, C]``.
            branch: of the block before, the same shape; None where there is none.
            factors: of that branch and of this block's attention, see
                :meth:`MixTransformer.draw`; None for 1.
            branch_bias: in that branch, without a gradient so far, see :func:`linear`.

        Returns:
            The tokens, this block's branch, and the bias in it, or None.
        """
        parts = block_parts(self, x)
        x, of_queries, of_keys = add_and_normalise(
            self.norm1, x, branch, factors[0], branch_bias, users=2, stand_in=parts.norm1
        )
        attended, bias = self.attn(of_queries, of_keys, parts)
        x, normalised = add_and_normalise(
            self.norm2, x, attended, factors[1], bias, stand_in=parts.norm2
        )
        return x, *self.mlp(normalised, parts.fc2)


class MixTransformer(nn.Module):
    """Images to features of strides 4, 8, 16 and 32, each image on its own.

    No operation mixes images, so any grouping of images into calls gives the same features.

    Args:
        config: widths, depths, heads and reductions.
        drop_path: stochastic depth of the last block; it rises linearly from 0 over all blocks.

    Attributes:
        drop_path: likewise.
        checkpointing: keep the inputs of every block alone and compute the rest again in the
            backward pass: same numbers, a third more arithmetic, about an eighth of the memory.
    """

    def __init__(self, config: Backbone, drop_path: float = 0.1) -> None:
        super().__init__()
        self.config = config
        self.drop_path = drop_path
        self.checkpointing = False
        in_channels = 3
        for i in range(4):
            width, heads, reduction = config.widths[i], config.heads[i], config.reductions[i]
            patch_embed = PatchEmbed(in_channels, width, *((7, 4) if i == 0 else (3, 2)))
            blocks = [
                Block(width, heads, reduction, config.mlp_ratio) for _ in range(config.depths[i])
            ]
            self.add_module(f"patch_embed{i + 1}", patch_embed)
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(width, eps=_BLOCK_EPS))
            in_channels = width
        self.apply(init_weights)
        spread_bias(cast(PatchEmbed, self.patch_embed1).proj)

    def levels(self) -> Iterator[tuple[PatchEmbed, nn.ModuleList, nn.LayerNorm]]:
        """Patch embedding, blocks and final norm of levels 1 to 4."""
        for i in range(1, 5):
            yield (
                cast(PatchEmbed, getattr(self, f"patch_embed{i}")),
                cast(nn.ModuleList, getattr(self, f"block{i}")),
                cast(nn.LayerNorm, getattr(self, f"norm{i}")),
            )

    def draw(self, images: Tensor) -> list[Tensor | None]:
        """Stochastic depth: factors of all residual branches, two for each block in its order.

        A branch of an image is dropped with probability ``p``, and divided by ``1 - p`` where it is
        kept, so the expectation is the branch. All are drawn at once, from torch's global
        generator. Source: arXiv:1603.09382.

        Args:
            images: ``[N, 3, H, W]``.

        Returns:
            ``[N, 1, 1, 1]`` float32 for each branch; None where nothing is dropped: in evaluation,
            and for a probability of 0, as in the first block.
        """
        return stochastic_depth(
            images, sum(self.config.depths), self.drop_path if self.training else 0.0
        )

    def run_level(
        self,
        level: int,
        x: Tensor,
        factors: Iterator[Tensor | None],
        parts: Iterator[Tensor | None] | None = None,
        users: int = 1,
    ) -> tuple[Tensor, ...]:
        """One level.

        Args:
            level: from 0.
            x: images ``[N, 3, H, W]``, or the level before ``[N, C, h, w]``.
            factors: of the residual branches of this level and those behind it, see :meth:`draw`.
            parts: likewise, stand-ins for the norms, see `norm_parts`; none: without.
            users: how many read the result.

        Returns:
            ``[N, C_i, h_i, w_i]`` in channels_last memory, normalised, for each user: the kernel of
            the norm adds up their gradients.
        """
        patch_embed, blocks, norm = list(self.levels())[level]
        parts = parts or repeat(None)
        tokens, branch, bias, factor = patch_embed(x, next(parts)), None, None, None
        for block in blocks:
            inputs = tokens, branch, (factor, next(factors)), bias
            if self.checkpointing and torch.is_grad_enabled():
                tokens, branch, bias = checkpoint(
                    block, *inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens, branch, bias = block(*inputs)
            factor = next(factors)
        _, *normalised = add_and_normalise(
            norm, tokens, branch, factor, bias, users=users, stand_in=next(parts)
        )
        return tuple(y.permute(0, 3, 1, 2) for y in normalised)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images.

        Args:
            images: ``[N, 3, H, W]``, normalised floats. A side of 32 pixels is the least that the
                spatial reduction of level 1 can work on.

        Returns:
            Four features ``[N, C_i, h_i, w_i]`` in channels_last memory, after each level's norm;
            ``h_1 = ceil(H / 4)``, then halved and rounded up per level.
        """
        features = []
        factors, parts, x = iter(self.draw(images)), iter(norm_parts(self, images)), images
        for level in range(4):
            feature, *onward = self.run_level(level, x, factors, parts, users=1 + (level < 3))
            features.append(feature)
            x = onward[0] if onward else x
        return features
