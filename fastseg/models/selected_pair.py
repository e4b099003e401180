"""Two frozen segmenters, and modules that select between them, element by element.

    s_v = sigmoid(p_v * (d_v * x_v))       d_v: depthwise 3x3, p_v: 1x1 to one channel, with biases
    y_v = (1 + s_v) x_v                    candidates x_1, x_2 [B, C, h, w], scores s_v [B, 1, h, w]
    out = x_(argmax_v y_v)                 per channel and pixel; ties go to the first

Source: RMMSS, arXiv:2505.12861v2, and the feature selection module of its released code. There the
arg max stands alone, so no score has a gradient and the module cannot learn. Here the forward pass
is the same and the backward pass is that of a soft selection (straight-through):

    out = sum_v w_v x_v,    w = onehot(argmax y) + softmax(y / tau) - constant(softmax(y / tau))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .backbones.attention import AttentionLevel
from .in_parts import SegmenterInParts
from .interface import Segmenter, SegmenterOutput
from .packing import Packing


class Selection(nn.Module):
    """Selects each element of a map from one of two candidates; 22 C + 2 parameters.

    Args:
        channels: C.
        temperature: tau of the soft selection in the backward pass.
    """

    def __init__(self, channels: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.scores = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                nn.Conv2d(channels, 1, 1),
            )
            for _ in range(2)
        )

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Select, in float32 or more.

        Args:
            first: ``[B, C, h, w]``.
            second: of the same shape and dtype.

        Returns:
            The selected elements as they are; and bool ``[B, C, h, w]``: those of the
            first.
        """
        wide = torch.promote_types(first.dtype, torch.float32)
        x, z = first.to(wide), second.to(wide)
        y_x = (1 + self.scores[0](first).to(wide).sigmoid()) * x
        y_z = (1 + self.scores[1](second).to(wide).sigmoid()) * z
        taken = y_x >= y_z
        hard = torch.where(taken, first, second)
        if not torch.is_grad_enabled():
            return hard, taken
        # of two candidates the softmax is a sigmoid, and the sum over w_v x_v its difference
        soft = ((y_x - y_z) / self.temperature).sigmoid()
        return hard + ((soft - soft.detach()) * (x - z)).to(hard.dtype), taken


class SelectedPair(Segmenter):
    """One model of a network for complete input and a robust one, which never change.

    The fused features of every level are selected from both, the robust network's head makes
    logits of them, and those are selected against the logits of the full network on its own
    features. Features of the output are the robust network's. Only the selections learn.

    While subsets are scored it counts the shares of elements that come from the full network.

    Args:
        full: candidate 1, trained on complete input.
        robust: candidate 2, trained on subsets.
        temperature: tau of the selections.
        name: what the full network is called in tables.

    Raises:
        ConfigError: a candidate is no `SegmenterInParts`, or their features differ in width.
    """

    abilities = frozenset({"fused", "packing"})

    def __init__(self, full: Segmenter, robust: Segmenter, temperature: float, name: str) -> None:
        super().__init__()
        for network in (full, robust):
            if not isinstance(network, SegmenterInParts):
                raise ConfigError(
                    "selection between two networks calls their encoders, fusion and head apart, "
                    f"and {type(network).__name__} has one call for all: take another method, such "
                    "as baseline or full_path, another --model.backbone, or derive the model from "
                    "SegmenterInParts"
                )
        if full.widths != robust.widths:
            raise ConfigError(
                f"selection needs features of the same channels, got {list(full.widths)} and "
                f"{list(robust.widths)}: give both networks the same backbone"
            )
        self.full, self.robust = cast(SegmenterInParts, full), cast(SegmenterInParts, robust)
        self.levels = nn.ModuleList(Selection(width, temperature) for width in robust.widths)
        self.last = Selection(self.robust.num_classes, temperature)
        self.reads_present = full.reads_present or robust.reads_present
        self.shares = (*(f"level {i + 1}" for i in range(len(self.levels))), "logits")
        self.shares_title = f"Share of elements taken from the {name}, in percent"
        self._taken: dict[tuple[int, ...], tuple[Tensor, list[int]]] = {}
        self.hold([full, robust])

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels of features."""
        return self.robust.widths

    def forward(
        self,
        images: Tensor,
        present: Sequence[int] | None = None,
        *,
        fused: Tensor | None = None,
        packing: Packing | None = None,
    ) -> SegmenterOutput:
        """Both encoders, the selections and both heads; see `Segmenter.forward`."""
        # short copies of weights that do not learn would record gradients, too
        with torch.no_grad():
            features = self.robust.encode(images, present, packing=packing)
            first = self.full.fuse(self.full.encode(images, present, packing=packing), fused)
            second = self.robust.fuse(features, fused)
        return SegmenterOutput(self._select(first, second)[0], features)

    def _select(
        self, first: Sequence[Tensor], second: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Fused levels of both to logits, and what was taken from the first, level by level."""
        with torch.no_grad():
            logits = self.full.decode(first)
        pairs = zip(self.levels, first, second, strict=True)
        selected = [level(x, z) for level, x, z in pairs]
        out, last = self.last(logits, self.robust.decode([x for x, _ in selected]))
        return out, [*(taken for _, taken in selected), last]

    def logits_of_subsets(
        self, images: Tensor, subsets: Sequence[Sequence[int]], missing: str = "drop"
    ) -> Iterator[Tensor]:
        """Logits of one subset after the other; each candidate encodes each image once.

        What was selected is counted for `take_shares`, without a wait for the device.
        """
        pairs = zip(
            self.full.fused_of_subsets(images, subsets, missing),
            self.robust.fused_of_subsets(images, subsets, missing),
            strict=True,
        )
        for positions, (first, second) in zip(subsets, pairs, strict=True):
            logits, taken = self._select(first, second)
            key, counts = tuple(positions), torch.stack([x.sum() for x in taken])
            before, sizes = self._taken.get(key, (torch.zeros_like(counts), [0] * len(taken)))
            sizes = [size + x.numel() for size, x in zip(sizes, taken, strict=True)]
            self._taken[key] = before + counts, sizes
            yield logits

    def take_shares(self) -> dict[tuple[int, ...], Tensor]:
        """Elements taken from the full network, and all, per level and for the logits."""
        found = {
            key: torch.stack([counts, torch.tensor(sizes, device=counts.device)], dim=1)
            for key, (counts, sizes) in self._taken.items()
        }
        self._taken = {}
        return found

    def _selections(self) -> list[nn.Module]:
        return [*self.levels, self.last]

    def fusion_and_head(self) -> list[nn.Module]:
        """The selections and both heads."""
        heads = [*self.full.fusion_and_head(), *self.robust.fusion_and_head()]
        return [*self._selections(), *heads]

    def units(self) -> list[nn.Module]:
        """The units of both candidates, then the selections."""
        return [*self.full.units(), *self.robust.units(), *self._selections()]

    def layers(self) -> list[list[nn.Module]]:
        """None: what learns has no depth, and the candidates are constant."""
        return []

    def reduced_modules(self) -> list[nn.Module]:
        """Those of both candidates, and all of the selections; these compare in float32."""
        own = [module for selection in self._selections() for module in selection.modules()]
        return [*self.full.reduced_modules(), *self.robust.reduced_modules(), *own]

    def recompute(self, on: bool) -> None:
        """Change nothing: the encoders keep no activations, as they do not learn."""

    def attention_levels(self, images: int, side: int) -> list[AttentionLevel]:
        """The levels of both encoders, which have the same shapes."""
        pairs = zip(
            self.full.attention_levels(images, side),
            self.robust.attention_levels(images, side),
            strict=True,
        )
        return [AttentionLevel([*a.layers, *b.layers], b.queries, b.keys) for a, b in pairs]

    def modality_parameters(self, modality: str) -> list[nn.Parameter]:
        """Those of both candidates."""
        both = (self.full, self.robust)
        return [p for network in both for p in network.modality_parameters(modality)]

    def make_constant(self, dtype: torch.dtype) -> None:
        """Make the candidates constants, and the selections' weights short."""
        for network in (self.full, self.robust):
            network.freeze(dtype)
        for selection in self._selections():
            selection.to(dtype)

    def constants(self) -> list[Tensor]:
        """Those of both candidates."""
        return [*self.full.constants(), *self.robust.constants()]
