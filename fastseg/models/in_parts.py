"""Segmenters whose encoders, fusion and head can be called apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..pipelines.tools.unknown import unknown
from .fusion import FUSIONS
from .heads.mlp import MLPHead
from .interface import Learning, Segmenter, SegmenterOutput
from .maps_of_means import logits_of_means, maps_are_cheap, with_blanks
from .packing import Packing


class SegmenterInParts(Segmenter):
    """A `Segmenter` with ``logits = decode(fuse(encode(images)))``.

    A model of this kind overrides what raises an error here; others can then work on its fused
    features, such as `fastseg.models.selected_pair.SelectedPair`.
    """

    @property
    def num_classes(self) -> int:
        """K."""
        raise NotImplementedError

    def encode(
        self,
        images: Tensor,
        present: Sequence[int] | None = None,
        learning: Learning | None = None,
        packing: Packing | None = None,
    ) -> list[Tensor]:
        """``[M', B, 3, H, W]`` to levels ``[M', B, C_i, h_i, w_i]``, see `Segmenter.forward`."""
        raise NotImplementedError

    def fuse(self, features: Sequence[Tensor], fused: Tensor | None = None) -> list[Tensor]:
        """Levels ``[M', B, C_i, h_i, w_i]`` to ``[B, C_i, h_i, w_i]``; ``[P B, ..]`` by marks."""
        raise NotImplementedError

    def decode(self, fused: Sequence[Tensor]) -> Tensor:
        """Levels ``[B, C_i, h_i, w_i]`` to logits ``[B, K, h_1, w_1]``."""
        raise NotImplementedError

    def logits_of_choices(
        self, features: Sequence[Tensor], choices: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """Logits ``[B, K, h_1, w_1]`` of one choice of encoded images after the other.

        Args:
            features: levels ``[N, B, C_i, h_i, w_i]`` of N images of each sample.
            choices: the images that are fused, by their rows; one may be taken several times.
        """
        for rows in choices:
            yield self.decode(self.fuse([level[list(rows)] for level in features]))

    def fused_of_subsets(
        self, images: Tensor, subsets: Sequence[Sequence[int]], missing: str = "drop"
    ) -> Iterator[list[Tensor]]:
        """Fused levels of one subset after the other, as in `logits_of_subsets`."""
        raise NotImplementedError

    def logits_of_subsets(
        self, images: Tensor, subsets: Sequence[Sequence[int]], missing: str = "drop"
    ) -> Iterator[Tensor]:
        """Logits of one subset after the other; what is encoded once serves all of them."""
        yield from map(self.decode, self.fused_of_subsets(images, subsets, missing))


class FusedSegmenter(SegmenterInParts):
    """Each image is encoded on its own; then a fusion without parameters, and SegFormer's head.

    A model of this kind has :meth:`encode` and sets the head.

    Args:
        num_classes: K, without the ignored label.
        embed_dim: channels E of the head.
        dropout: probability that a channel of the fused map is dropped in training.
        fusion: a name in :data:`FUSIONS`.

    Attributes:
        decoder: the head.
        fusion: likewise.

    Raises:
        ConfigError: the fusion is unknown or a number is out of range.
    """

    abilities = frozenset({"fused", "learning", "head", "packing"})
    decoder: MLPHead

    def __init__(self, num_classes: int, embed_dim: int, dropout: float, fusion: str) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("embed_dim", embed_dim)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be a probability below 1, got {dropout}")
        if fusion not in FUSIONS:
            raise ConfigError(unknown("fusion", fusion, FUSIONS))
        self.fusion = fusion

    @property
    def num_classes(self) -> int:
        """K."""
        return self.decoder.linear_pred.out_channels

    def fuse(self, features: Sequence[Tensor], fused: Tensor | None = None) -> list[Tensor]:
        """Fuse the modalities: four levels ``[M, B, C_i, h_i, w_i]`` to ``[B, C_i, h_i, w_i]``.

        With ``fused [P, M, B]`` those that are marked: ``[P B, C_i, h_i, w_i]``.
        """
        return FUSIONS[self.fusion](features, fused, 0)[0]

    def decode(self, fused: Sequence[Tensor]) -> Tensor:
        """Fused levels ``[B, C_i, h_i, w_i]`` to logits ``[B, K, h_1, w_1]`` at stride 4."""
        return cast(Tensor, self.decoder(fused, self.decoder.draw(fused)))

    def forward(
        self,
        images: Tensor,
        present: Sequence[int] | None = None,
        *,
        fused: Tensor | None = None,
        learning: Learning | None = None,
        head: bool = True,
        packing: Packing | None = None,
    ) -> SegmenterOutput:
        """``[M', B, 3, H, W]`` to logits and per-modality features; see the methods above.

        Which modalities they are makes no difference where all share the encoder.
        """
        features = self.encode(images, present, learning, packing)
        if not head:
            return SegmenterOutput(features[0].new_empty(0), features)
        levels, (features,) = FUSIONS[self.fusion](features, fused, 1)
        return SegmenterOutput(self.decode(levels), features)

    def fusion_and_head(self) -> list[nn.Module]:
        """The head; the fusions have no parameters."""
        return [self.decoder]

    def fused_of_subsets(
        self, images: Tensor, subsets: Sequence[Sequence[int]], missing: str = "drop"
    ) -> Iterator[list[Tensor]]:
        """Fused levels of one subset after the other; each image is encoded once.

        The encoder treats every modality alone, so only fusion and head run per subset: M encoder
        passes instead of M 2^(M-1). With ``drop`` the present modalities are fused; with ``zero``
        all of them, a missing one with the features of an image of zeros (after normalisation).
        """
        features, choices = self._choices(images, subsets, missing)
        for rows in choices:
            yield self.fuse([level[rows] for level in features])

    def logits_of_subsets(
        self, images: Tensor, subsets: Sequence[Sequence[int]], missing: str = "drop"
    ) -> Iterator[Tensor]:
        """Logits of one subset after the other, as in `fused_of_subsets`."""
        yield from self.logits_of_choices(*self._choices(images, subsets, missing))

    def _choices(
        self, images: Tensor, subsets: Sequence[Sequence[int]], missing: str
    ) -> tuple[list[Tensor], list[list[int]]]:
        """Features of images, and the rows of each subset, see `logits_of_choices`."""
        if missing == "drop":
            return self.encode(images), [list(positions) for positions in subsets]
        # one blank image tells for all modalities what their shared encoder makes of it
        blanks = torch.zeros_like(images if self.reads_present else images[:1])
        return with_blanks(self.encode(images), self.encode(blanks), subsets)

    def logits_of_choices(
        self, features: Sequence[Tensor], choices: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """Logits of one choice of encoded images after the other."""
        if self.fusion == "mean" and not self.training and maps_are_cheap(self.decoder, features):
            yield from logits_of_means(self.decoder, features, choices)
        else:
            yield from super().logits_of_choices(features, choices)

    def constants(self) -> list[Tensor]:
        """The folded weights of the head."""
        return self.decoder.constants()


def checked_images(images: Tensor) -> tuple[int, int]:
    """M and B of ``images [M, B, 3, H, W]``.

    Raises:
        ValueError: the shape is another one, or a side is no multiple of 32.
    """
    if images.ndim != 5 or images.shape[2] != 3 or images.numel() == 0:
        raise ValueError(f"expected images [M, B, 3, H, W], got {list(images.shape)}")
    m, b, _, h, w = images.shape
    if h % 32 or w % 32:
        raise ValueError(f"height and width must be multiples of 32, got {h} x {w}")
    return m, b
