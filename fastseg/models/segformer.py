"""M-SegFormer: one encoder shared by all modalities, mean fusion, SegFormer's all-MLP head.

    F_i[m, b] = encoder_i(image[m, b])       level i of modality m and sample b
    fused_i[b] = mean over m of F_i[m, b]    the only cross-modal operation
    logits = head(fused_1, .., fused_4)

A modality is one more image to the encoder, so any subset of sensors can be given, in training and
at evaluation. Sources: SegFormer, arXiv:2105.15203; the shared encoder with mean fusion is that of
AnySeg, arXiv:2411.17141, and RobustSeg, arXiv:2505.12861. Parameter names follow their checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .backbones.mit import Backbone, MixTransformer, get_backbone
from .casting import cast_together
from .interface import AttentionLevel, Segmenter, SegmenterOutput
from .weights import LoadReport, load_encoder_weights


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

    def folded(self) -> tuple[list[Tensor], Tensor]:
        """``W_i L_i`` of levels 1 to 4, each ``[E, C_i]``, and ``sum_i W_i a_i``, ``[E]``."""
        conv = cast(nn.Conv2d, self.linear_fuse["conv"])
        projections = [cast(nn.Linear, getattr(self, f"linear_c{i}")["proj"]) for i in range(1, 5)]
        # the published concatenation has the deepest level first
        blocks = conv.weight.flatten(1).chunk(4, dim=1)[::-1]
        # products of parameters are small: keep them in full precision under autocast, which meta
        # does not have; torch 2.11 cannot compile the question who does
        kind = conv.weight.device.type
        with torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext():
            pairs = list(zip(blocks, projections, strict=True))
            weights = [block @ proj.weight for block, proj in pairs]
            bias = torch.stack([block @ proj.bias for block, proj in pairs]).sum(dim=0)
        return weights, bias

    def freeze(self, dtype: torch.dtype) -> None:
        """Keep the products, with the BatchNorm of the evaluation in them, as constants."""
        norm = cast(nn.BatchNorm2d, self.linear_fuse["bn"])
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            weights, bias = self.folded()
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            bias = scale * (bias - norm.running_mean) + norm.bias
            self._constant = [(scale[:, None] * w).to(dtype) for w in weights], bias.to(dtype)
        self.linear_pred.to(dtype)

    def constants(self) -> list[Tensor]:
        """What :meth:`freeze` has made, beside parameters and buffers."""
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
            factor: of the channels of the fused map, as drawn by :meth:`draw`; none for 1.
        """
        weights, bias = self._constant or self.folded()
        n, _, h, w = features[0].shape
        *weights, bias = cast_together([*weights, bias], features[0].dtype)
        # in place, as nothing needs a sum so far for its gradient, but not through a view, as
        # autograd would then copy everything; the bias is added where the map is smallest
        deeper = _upsampled(features[3], weights[3], bias, (h, w))
        deeper += _upsampled(features[2], weights[2], None, (h, w))
        deeper += _upsampled(features[1], weights[1], None, (h, w))
        pixels = torch.addmm(_pixels(deeper), _pixels(features[0]), weights[0].t())
        x = _maps(pixels, n, h)
        if self._constant is None:
            x = self.linear_fuse["bn"](x)
        x = _pixels(F.relu(x, inplace=True))
        # as a product the gradient keeps the channels last, which a 1x1 convolution would not
        weight, bias = self.linear_pred.weight.flatten(1), cast(Tensor, self.linear_pred.bias)
        if factor is None:
            return _maps(F.linear(x, weight, bias), n, h)
        # dropping channels drops columns of the weight: the map is neither copied nor kept twice
        weight = weight * factor.to(weight.dtype)[:, None]
        logits = torch.baddbmm(bias, x.view(n, h * w, -1), weight.transpose(1, 2))
        return _maps(logits.flatten(0, 1), n, h)


class SegFormer(Segmenter):
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

    Raises:
        ConfigError: the backbone is unknown or a number is out of range.
    """

    def __init__(
        self,
        backbone: str | Backbone,
        num_classes: int,
        embed_dim: int,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("embed_dim", embed_dim)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name, p in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= p < 1:
                raise ConfigError(f"{name} must be a probability below 1, got {p}")
        config = get_backbone(backbone) if isinstance(backbone, str) else backbone
        self.encoder = MixTransformer(config, drop_path)
        self.decoder = MLPHead(config.widths, num_classes, embed_dim, dropout, norm_momentum)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Encode every image of every modality in one call.

        Args:
            images: ``[M, B, 3, H, W]``, normalised floats; H and W multiples of 32, so that level
                i has exactly ``H / 2^(i+1)`` rows and the reduced keys cover all of them.

        Returns:
            Four levels ``[M, B, C_i, h_i, w_i]``; the channels are the fastest axis in memory.

        Raises:
            ValueError: the shape is another one.
        """
        if images.ndim != 5 or images.shape[2] != 3 or images.numel() == 0:
            raise ValueError(f"expected images [M, B, 3, H, W], got {list(images.shape)}")
        m, b, _, h, w = images.shape
        if h % 32 or w % 32:
            raise ValueError(f"height and width must be multiples of 32, got {h} x {w}")
        return [x.unflatten(0, (m, b)) for x in self.encoder(images.flatten(0, 1))]

    def fuse(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Mean over modalities: four levels ``[M, B, C_i, h_i, w_i]`` to ``[B, C_i, h_i, w_i]``."""
        # with the channels last the reduction runs over contiguous memory and stays in that layout
        return [
            x[0] if x.shape[0] == 1 else x.movedim(2, -1).mean(dim=0).movedim(-1, 1)
            for x in features
        ]

    def decode(self, fused: Sequence[Tensor]) -> Tensor:
        """Fused levels ``[B, C_i, h_i, w_i]`` to logits ``[B, K, h_1, w_1]`` at stride 4."""
        return cast(Tensor, self.decoder(fused, self.decoder.draw(fused)))

    def forward(self, images: Tensor, present: Sequence[int] | None = None) -> SegmenterOutput:
        """``[M', B, 3, H, W]`` to logits and per-modality features; see the methods above.

        Which modalities they are makes no difference: all share the encoder.
        """
        features = self.encode(images)
        return SegmenterOutput(self.decode(self.fuse(features)), features)

    def logits_of_subsets(
        self, images: Tensor, subsets: Sequence[Sequence[int]], missing: str = "drop"
    ) -> Iterator[Tensor]:
        """Logits of one subset after the other; each image is encoded once.

        The encoder treats every modality alone and the fusion is a mean, so only fusion and head
        run per subset: M encoder passes instead of M 2^(M-1). With ``drop`` the mean runs over the
        present modalities; with ``zero`` over all of them, a missing one giving the features of an
        image of zeros (after normalisation).
        """
        count, features = len(images), self.encode(images)
        blank = self.encode(torch.zeros_like(images[:1])) if missing == "zero" else None

        def fuse(level: int, rows: list[int]) -> Tensor:
            found = features[level][rows]
            if blank is None:
                return found.mean(dim=0)
            return (found.sum(dim=0) + (count - len(rows)) * blank[level][0]) / count

        for positions in subsets:
            rows = list(positions)
            yield self.decode([fuse(level, rows) for level in range(len(features))])

    def units(self) -> list[nn.Module]:
        """Every transformer block, then the head.

        Patch embeddings and the norms between levels are small and stay outside.
        """
        blocks = [block for _, blocks, _ in self.encoder.levels() for block in blocks]
        return [*blocks, self.decoder]

    def reduced_modules(self) -> list[nn.Module]:
        """The encoder and the classifier; the head multiplies weights, in full precision."""
        return [*self.encoder.modules(), self.decoder.linear_pred]

    def recompute(self, on: bool) -> None:
        """Keep the inputs of the encoder's blocks alone, or everything."""
        self.encoder.checkpointing = on

    def attention_levels(self, images: int, side: int) -> list[AttentionLevel]:
        """The four levels of the encoder."""
        config, levels = self.encoder.config, []
        for i, (_, blocks, _) in enumerate(self.encoder.levels()):
            rows = side // (4 << i)
            queries = (images, config.heads[i], rows**2, config.widths[i] // config.heads[i])
            layers = [block.attn for block in blocks]
            levels.append(AttentionLevel(layers, queries, (rows // config.reductions[i]) ** 2))
        return levels

    def load_encoder(self, path: Path) -> LoadReport:
        """Set the encoder from a file in any common layout, see `load_encoder_weights`."""
        return load_encoder_weights(self.encoder, path)

    def make_constant(self, dtype: torch.dtype) -> None:
        """Fold the head's projections and the BatchNorm of the evaluation."""
        self.decoder.freeze(dtype)
        self.encoder.to(dtype)

    def constants(self) -> list[Tensor]:
        """The folded weights of the head."""
        return self.decoder.constants()


def _upsampled(level: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """A level projected and brought to the size of the first one, the channels last in memory."""
    y = _maps(F.linear(_pixels(level), weight, bias), len(level), level.shape[2])
    return F.interpolate(y, size, mode="bilinear", align_corners=False)


def _pixels(x: Tensor) -> Tensor:
    """``[B, C, h, w]`` with the channels last in memory to ``[B h w, C]``, without a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(pixels: Tensor, n: int, h: int) -> Tensor:
    """Inverse of :func:`_pixels` for n samples of h rows."""
    return pixels.view(n, h, -1, pixels.shape[1]).permute(0, 3, 1, 2)
