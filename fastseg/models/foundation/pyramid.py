"""Four levels of features from the tokens of a plain transformer, whose stride is 16.

    level 1   stride  4   two transposed convolutions
    level 2   stride  8   one
    level 3   stride 16   as it is
    level 4   stride 32   maximum of 2 x 2

Each reads the tokens of another depth, the first level the earliest. Source: the simple feature
pyramid of ViTDet, arXiv:2203.16527, section 3; it reads the last block alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm of the channels of ``[N, C, h, w]``, each pixel on its own."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, the channels the fastest axis in memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """Tokens of four depths to four levels; each image and modality on its own.

    Args:
        inside: channels of a token.
        width: channels of every level.

    Attributes:
        width: likewise.
    """

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.projections = nn.ModuleList(nn.Conv2d(inside, width, 1) for _ in range(4))
        self.scalings = nn.ModuleList(
            [
                nn.Sequential(_up(width), ChannelNorm(width), nn.GELU(), _up(width)),
                _up(width),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(4))

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Four maps ``[N, C, h, w]`` of the same size, h and w even, to levels.

        Returns:
            ``[N, width, 4 h, 4 w]`` to ``[N, width, h / 2, w / 2]``; the channels are the fastest
            axis in memory.
        """
        parts = zip(self.projections, self.scalings, self.norms, tokens, strict=True)
        return [norm(scale(project(x))) for project, scale, norm, x in parts]


def _up(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 2, 2)
