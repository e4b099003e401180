"""A segmenter whose encoders, fusion and head can be called apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from .interface import Segmenter
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
        learning: Tensor | None = None,
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
