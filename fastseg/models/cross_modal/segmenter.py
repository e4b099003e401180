"""The network of two branches: the hub modality, and all others.

    at every level:   x = mit_level(x),   z = others_level(z_1, .., z_A)
                      x, z = rectify(x, z)          both go on to the next level
                      F_i = fuse(x, z)
    logits = head(F_1, .., F_4)

The others are one modality in another Mix Transformer (CMX, arXiv:2203.04838), or any number of
them in a branch of pooling mixers behind a selection (CMNeXt, arXiv:2303.01480). Modalities meet
within the encoder, so there are no features of each modality by itself.

**Missing modalities.** What is not there is an image of zeros; an auxiliary modality is left out of
the hub's selection besides, unless a sample has none at all: then all of its images of zeros are
selected from. So every subset has a meaning, without the hub modality, too, and each sample of a
batch may have its own. As published, with ``missing zero``, images of zeros take part in the
selection like any others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..backbones.attention import AttentionLevel
from ..backbones.mit import Backbone, MixTransformer
from ..backbones.stochastic_depth import stochastic_depth
from ..heads.mlp import MLPHead
from ..interface import Segmenter, SegmenterOutput
from ..packing import checked_marks
from ..weight_files.load import load_weights
from ..weight_files.report import LoadReport
from .fusion import Fusion, Rectification
from .hub import HubSelection
from .pooling import PoolingBranch
from .subsets import complete, each_fusion, without

# released weights were trained with torch's default in the Mix Transformer, too
_NORM_EPS = 1e-5


class CrossModalSegmenter(Segmenter):
    """CMNeXt, or CMX with ``second="mit"``.

    Args:
        config: widths, depths, heads and reductions of the branches.
        num_classes: K, without the ignored label.
        modalities: names of the M modalities of the run.
        embed_dim: channels of the head.
        second: branch of the others: ``pooling``, or ``mit`` for a single one.
        dropout: probability that a channel before the classifier is dropped in training.
        drop_path: stochastic depth of the last block of each branch.
        norm_momentum: share of the newest batch in all BatchNorm statistics.
        hub: name of the modality with a branch of its own; the first one by default.
        hub_selection: how several others become one, see `SelfQueryHub`.
        scramble: the order of numbers between levels that released weights need, see
            `PoolingBranch`.

    Raises:
        ConfigError: the modalities do not fit.
    """

    reads_present = True
    features_by_modality = False
    abilities = frozenset({"fused"})

    def __init__(
        self,
        config: Backbone,
        num_classes: int,
        modalities: Sequence[str],
        embed_dim: int,
        *,
        second: str = "pooling",
        dropout: float = 0.1,
        drop_path: float = 0.1,
        norm_momentum: float = 0.1,
        hub: str | None = None,
        hub_selection: HubSelection = "self_query",
        scramble: bool = False,
    ) -> None:
        super().__init__()
        names = list(modalities)
        hub = names[0] if hub is None else hub
        if hub not in names:
            raise ConfigError(
                f"the hub {hub!r} is none of the modalities of the run, which are "
                f"{', '.join(names)}: name one of them with --model.hub"
            )
        if second == "mit" and len(names) != 2:
            raise ConfigError(
                f"CMX takes two modalities, and the run has {', '.join(names)}: choose two with "
                "--data.modalities, or take a --model.backbone for any number, such as cmnext_b2"
            )
        self.config = config
        self.modalities = tuple(names)
        self.hub = names.index(hub)
        self.others = [m for m in range(len(names)) if m != self.hub]
        self.encoder = _mix_transformer(config, drop_path)
        self.auxiliary: PoolingBranch | MixTransformer | None = None
        if second == "mit":
            self.auxiliary = _mix_transformer(config, drop_path)
        elif self.others:
            self.auxiliary = PoolingBranch(
                config, len(self.others), norm_momentum, hub_selection, scramble
            )
        levels = list(zip(config.widths, config.heads, strict=True)) if self.others else []
        self.rectify = nn.ModuleList(Rectification(width) for width, _ in levels)
        self.fuse = nn.ModuleList(Fusion(width, heads, norm_momentum) for width, heads in levels)
        self.decoder = MLPHead(config.widths, num_classes, embed_dim, dropout, norm_momentum)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.decoder.linear_pred.out_channels

    def forward(
        self,
        images: Tensor,
        present: Sequence[int] | None = None,
        *,
        fused: Tensor | None = None,
    ) -> SegmenterOutput:
        """``[M', B, 3, H, W]`` to logits; there are no features of single modalities.

        With ``fused [P, M', B]`` each of the P fusions is a pass of its own through both branches.
        """
        if images.ndim != 5 or images.shape[2] != 3 or images.numel() == 0:
            raise ValueError(f"expected images [M, B, 3, H, W], got {list(images.shape)}")
        h, w = images.shape[3:]
        if h % 32 or w % 32:
            raise ValueError(f"height and width must be multiples of 32, got {h} x {w}")
        images, there = complete(*each_fusion(images, fused), present, len(self.modalities))
        levels = self._encode(images[self.hub], without(images, self.hub), self._selected(there))
        return SegmenterOutput(self.decoder(levels, self.decoder.draw(levels)), [])

    def _selected(self, there: Tensor | None) -> Tensor | None:
        """``[A, B]``: what the hub selects from; all where a sample has no auxiliary modality."""
        if there is None or len(self.others) < 2:
            return None
        others = without(there, self.hub)
        return others | ~others.any(0)

    def _encode(self, x: Tensor, others: Tensor, there: Tensor | None) -> list[Tensor]:
        """Four fused levels ``[B, C_i, h_i, w_i]``."""
        factors, levels = iter(self.encoder.draw(x)), []
        branch = self.auxiliary
        rate = self.encoder.drop_path if self.training and branch is not None else 0.0
        second = iter(stochastic_depth(x, sum(self.config.depths), rate))
        for level in range(4):
            (x,) = self.encoder.run_level(level, x, factors)
            if branch is None:
                levels.append(x)
                continue
            own: Tensor | None = None
            if isinstance(branch, PoolingBranch):
                z, own = branch.run_level(level, others, there, second)
            else:
                z = branch.run_level(level, others[0], second)[0].permute(0, 2, 3, 1)
            tokens, z = self.rectify[level](x.permute(0, 2, 3, 1), z)
            levels.append(self.fuse[level](tokens, z))
            x = tokens.permute(0, 3, 1, 2)
            if isinstance(branch, PoolingBranch):
                others = branch.onward(z, own)
            else:
                others = z.permute(0, 3, 1, 2).unsqueeze(0)
        return levels

    def logits_of_marks(self, images: Tensor, marks: Tensor) -> Tensor:
        """All samples in one pass, see `Segmenter.logits_of_marks`."""
        marks = checked_marks(images, marks).to(images.device, non_blocking=True)
        return cast(Tensor, self(images, fused=marks[None]).logits)

    def units(self) -> list[nn.Module]:
        """The blocks of both branches, rectification and fusion of every level, the head."""
        return [*self._blocks(), *self.rectify, *self.fuse, self.decoder]

    def regions(self) -> list[nn.Module]:
        """The units; those with a BatchNorm that processes share run as they are, but the head."""
        return [
            unit
            for unit in self.units()
            if unit is self.decoder or not any(hasattr(m, "group") for m in unit.modules())
        ]

    def _blocks(self) -> list[nn.Module]:
        return [block for blocks in self._depths() for block in blocks]

    def _depths(self) -> list[list[nn.Module]]:
        """Blocks of the same depth in both branches."""
        branches = [[b for _, blocks, _ in self.encoder.levels() for b in blocks]]
        if isinstance(self.auxiliary, PoolingBranch):
            branches.append([b for level in self.auxiliary.blocks for b in _blocks_of(level)])
        elif self.auxiliary is not None:
            branches.append([b for _, blocks, _ in self.auxiliary.levels() for b in blocks])
        return [list(blocks) for blocks in zip(*branches, strict=True)]

    def layers(self) -> list[list[nn.Module]]:
        """Blocks by depth; what lies before or behind those of a level goes with them; the head."""
        depths, start = self._depths(), 0
        for level, depth in enumerate(self.config.depths):
            first, last = depths[start], depths[start + depth - 1]
            for embed, norm in self._borders(level):
                first.insert(0, embed)
                last.append(norm)
            if self.others:
                last += [self.rectify[level], self.fuse[level]]
                if isinstance(self.auxiliary, PoolingBranch) and len(self.auxiliary.hubs):
                    first.append(self.auxiliary.hubs[level])
            start += depth
        return [*depths, [self.decoder]]

    def _borders(self, level: int) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Patch embedding and norm of a level in each branch."""
        for branch in (self.encoder, self.auxiliary):
            if isinstance(branch, PoolingBranch):
                yield branch.embeds[level], branch.norms[level]
            elif branch is not None:
                embed, _, norm = list(branch.levels())[level]
                yield embed, norm

    def reduced_modules(self) -> list[nn.Module]:
        """All but BatchNorms, the hub's scores and the head, which multiply weights; classifier."""
        whole = {self.decoder, *self.decoder.modules()}
        if isinstance(self.auxiliary, PoolingBranch):
            whole |= set(self.auxiliary.hubs.modules())
        short = [m for m in super().reduced_modules() if m not in whole]
        return [*short, self.decoder.linear_pred]

    def recompute(self, on: bool) -> None:
        """Keep the inputs of the Mix Transformer's blocks alone, or everything.

        Pooling mixers keep theirs: computed twice, their BatchNorms would count a batch twice.
        """
        for branch in (self.encoder, self.auxiliary):
            if isinstance(branch, MixTransformer):
                branch.checkpointing = on

    def attention_levels(self, images: int, side: int) -> list[AttentionLevel]:
        """The levels of the Mix Transformers, one image of each sample in a call."""
        branches = [b for b in (self.encoder, self.auxiliary) if isinstance(b, MixTransformer)]
        config, levels, samples = self.config, [], images // len(self.modalities)
        for i, parts in enumerate(zip(*(b.levels() for b in branches), strict=True)):
            rows = side // (4 << i)
            queries = (samples, config.heads[i], rows**2, config.widths[i] // config.heads[i])
            layers = [block.attn for _, blocks, _ in parts for block in blocks]
            levels.append(AttentionLevel(layers, queries, (rows // config.reductions[i]) ** 2))
        return levels

    def modality_parameters(self, modality: str) -> list[nn.Parameter]:
        """Norms and scores of an auxiliary modality; the branches serve several."""
        position = self.modalities.index(modality)
        if position == self.hub or not isinstance(self.auxiliary, PoolingBranch):
            return []
        own = self.others.index(position)
        return self.auxiliary.own_parameters(own)

    def load_encoder(self, path: Path) -> LoadReport:
        """Set the Mix Transformers from a file in any common layout; others stay random."""
        return load_weights(self, path, encoder_only=True)

    def make_constant(self, dtype: torch.dtype) -> None:
        """Fold the head; BatchNorms stay in float32 beside shorter weights."""
        self.decoder.freeze(dtype)
        whole = set(self.decoder.modules())
        if dtype.itemsize < torch.float32.itemsize:
            whole |= {m for m in self.modules() if isinstance(m, nn.BatchNorm2d)}
        for module in set(self.modules()) - whole:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(dtype)

    def constants(self) -> list[Tensor]:
        """The folded weights of the head."""
        return self.decoder.constants()


def _mix_transformer(config: Backbone, drop_path: float) -> MixTransformer:
    encoder = MixTransformer(config, drop_path)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = _NORM_EPS
    return encoder


def _blocks_of(level: nn.Module) -> list[nn.Module]:
    return list(cast(nn.ModuleList, level))
