"""M-SegFormer: one encoder shared by all modalities, a fusion, SegFormer's all-MLP head.

    F_i[m, b] = encoder_i(image[m, b])       level i of modality m and sample b
    fused_i[b] = mean over m of F_i[m, b]    the only cross-modal operation
    logits = head(fused_1, .., fused_4)

Another fusion may take the place of the mean, see `fastseg.models.fusion`. A modality is one more
image to the encoder, so any subset of sensors can be given, in training and at evaluation. With an
encoder of its own per modality the same holds, in one call each. Sources: SegFormer,
arXiv:2105.15203; the shared encoder with mean fusion is that of AnySeg, arXiv:2411.17141, and
RobustSeg, arXiv:2505.12861. Parameter names follow their checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from fastseg.models.heads.mlp import MLPHead

from ..errors import ConfigError
from .backbones.attention import AttentionLevel
from .backbones.mit import Backbone, MixTransformer, get_backbone
from .in_parts import FusedSegmenter, checked_images
from .interface import Learning
from .packing import Packing, encode_packed
from .partial import encode_chosen, encode_in_part, learning_only
from .weight_files.load import load_weights
from .weight_files.report import LoadReport


class SegFormer(FusedSegmenter):
    """The segmenter of any subset of modalities.

    To score many subsets of the same images, encode once and fuse each subset's features:
    ``model.decode(model.fuse([x[subset] for x in features]))`` equals ``model(images[subset])``.

    Args:
        backbone: a name in :data:`BACKBONES`, or hyper-parameters of your own.
        num_classes: K, without the ignored label.
        embed_dim: channels E of the head; 768 in the published AnySeg and RobustSeg models,
            whatever the backbone.
        dropout: probability that a channel of the fused map is dropped in training.
        norm_momentum: share of the newest batch in the running statistics of the BatchNorm.
        drop_path: stochastic depth of the encoder's last block, see :class:`MixTransformer`.
        own_encoders: names of the M modalities, each of which gets an encoder of its own; none:
            all share one.
        fusion: a name in :data:`FUSIONS`. Weights do not tell which one they were trained with; the
            config of a run does.

    Raises:
        ConfigError: the backbone or the fusion is unknown or a number is out of range.
    """

    def __init__(
        self,
        backbone: str | Backbone,
        num_classes: int,
        embed_dim: int,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        norm_momentum: float = 0.1,
        own_encoders: Sequence[str] = (),
        fusion: str = "mean",
    ) -> None:
        super().__init__(num_classes, embed_dim, dropout, fusion)
        if not 0 <= drop_path < 1:
            raise ConfigError(f"drop_path must be a probability below 1, got {drop_path}")
        config = get_backbone(backbone) if isinstance(backbone, str) else backbone
        self.config = config
        self.reads_present = bool(own_encoders)
        if own_encoders:
            self.encoders = nn.ModuleDict(
                {name: MixTransformer(config, drop_path) for name in own_encoders}
            )
        else:
            self.encoder = MixTransformer(config, drop_path)
        self.decoder = MLPHead(config.widths, num_classes, embed_dim, dropout, norm_momentum)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the four levels."""
        return self.config.widths

    def _encoders(self) -> list[MixTransformer]:
        """All encoders: one, or that of each modality in the order of the run."""
        own = self.encoders.values() if self.reads_present else [self.encoder]
        return cast(list[MixTransformer], list(own))

    def encode(
        self,
        images: Tensor,
        present: Sequence[int] | None = None,
        learning: Learning | None = None,
        packing: Packing | None = None,
    ) -> list[Tensor]:
        """Encode every image of every modality; in one call where all share the encoder.

        Args:
            images: ``[M, B, 3, H, W]``, normalised floats; H and W multiples of 32, so that level
                i has exactly ``H / 2^(i+1)`` rows and the reduced keys cover all of them.
            present: positions of these modalities among those of the run; None: all. Read where
                they have encoders of their own.
            learning: ``[W, B]`` or a function, see `Segmenter.forward`; None: all.
            packing: the images that are encoded; None: all. Those of a packing all learn.

        Returns:
            Four levels ``[M, B, C_i, h_i, w_i]``; the channels are the fastest axis in memory.

        Raises:
            ValueError: the shape is another one.
        """
        m, b = checked_images(images)
        if packing is not None:
            encoders = self._encoders()
            if self.reads_present and present is not None:
                encoders = [encoders[p] for p in present]
            return encode_packed(encoders, images, packing)
        if self.reads_present:
            features = self._encode_apart(images, range(m) if present is None else present)
            if learning is None:
                return features
            if not isinstance(learning, Tensor):
                learning = learning([x.detach() for x in features])
            return learning_only(features, learning)
        if isinstance(learning, Tensor):
            return encode_in_part(self.encoder, images, learning)
        if learning is not None:
            return encode_chosen(self.encoder, images, learning)
        return [x.unflatten(0, (m, b)) for x in self.encoder(images.flatten(0, 1))]

    def _encode_apart(self, images: Tensor, present: Sequence[int]) -> list[Tensor]:
        """Each modality by its own encoder."""
        encoders = self._encoders()
        levels = zip(*(encoders[p](x) for p, x in zip(present, images, strict=True)), strict=True)
        # the channels stay the fastest axis
        return [torch.stack([x.movedim(1, -1) for x in one]).movedim(-1, 2) for one in levels]

    def modality_parameters(self, modality: str) -> list[nn.Parameter]:
        """The encoder of the modality, if each has its own."""
        return list(self.encoders[modality].parameters()) if self.reads_present else []

    def units(self) -> list[nn.Module]:
        """Every transformer block, then the head.

        Patch embeddings and the norms between levels are small and stay outside.
        """
        levels = (level for encoder in self._encoders() for level in encoder.levels())
        return [*(block for _, blocks, _ in levels for block in blocks), self.decoder]

    def layers(self) -> list[list[nn.Module]]:
        """The transformer blocks with what lies before them or behind the last of a level; head."""
        of_encoders = [[*_depths(encoder)] for encoder in self._encoders()]
        together = zip(*of_encoders, strict=True)
        return [*([m for own in depth for m in own] for depth in together), [self.decoder]]

    def reduced_modules(self) -> list[nn.Module]:
        """The encoders and the classifier; the head multiplies weights, in full precision."""
        modules = (module for encoder in self._encoders() for module in encoder.modules())
        return [*modules, self.decoder.linear_pred]

    def recompute(self, on: bool) -> None:
        """Keep the inputs of the encoder's blocks alone, or everything."""
        for encoder in self._encoders():
            encoder.checkpointing = on

    def attention_levels(self, images: int, side: int) -> list[AttentionLevel]:
        """The four levels of the encoders."""
        config, encoders, levels = self.config, self._encoders(), []
        together = images // len(encoders)
        for i, parts in enumerate(zip(*(encoder.levels() for encoder in encoders), strict=True)):
            rows = side // (4 << i)
            queries = (together, config.heads[i], rows**2, config.widths[i] // config.heads[i])
            layers = [block.attn for _, blocks, _ in parts for block in blocks]
            levels.append(AttentionLevel(layers, queries, (rows // config.reductions[i]) ** 2))
        return levels

    def load_encoder(self, path: Path) -> LoadReport:
        """Set every encoder from a file in any common layout, see `load_weights`."""
        return load_weights(self, path, encoder_only=True)

    def make_constant(self, dtype: torch.dtype) -> None:
        """Fold the head's projections and the BatchNorm of the evaluation."""
        self.decoder.freeze(dtype)
        for encoder in self._encoders():
            encoder.to(dtype)


def _depths(encoder: MixTransformer) -> Iterator[list[nn.Module]]:
    """A block each, with the patch embedding before it and the norm of the level behind it."""
    for patch_embed, blocks, norm in encoder.levels():
        for i, block in enumerate(blocks):
            yield [patch_embed] * (i == 0) + [block] + [norm] * (i == len(blocks) - 1)
