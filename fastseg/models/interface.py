"""Interface of a model to the rest of fastseg: a segmenter of any subset of modalities.

The engine trains, spreads, compiles, scores and saves a `Segmenter` through the methods here; a
model overrides those for which it knows better than the default. Models are registered by
`fastseg.models.registry.register_backbone`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .backbones.attention import AttentionLevel
from .packing import Packing, PackingRule, checked_marks, subsets_of

Learning = Tensor | Callable[[list[Tensor]], Tensor]
"""Rows ``[W, B]`` of the images that learn, or a function from the features to such rows."""


class SegmenterOutput(NamedTuple):
    """Output of a :class:`Segmenter`.

    Attributes:
        logits: ``[B, K, h_1, w_1]``, before the softmax.
        features: levels ``[M', B, C_i, h_i, w_i]`` of each modality before fusion, which
            distillation reads; the channels are best the fastest axis in memory.
    """

    logits: Tensor
    features: list[Tensor]


class OutputWithExtras(NamedTuple):
    """Output of a :class:`Segmenter` with companions, while it trains.

    Attributes:
        logits: as in `SegmenterOutput`.
        features: as in `SegmenterOutput`.
        extras: results of the companions by name, see `Segmenter.add_companion`.
    """

    logits: Tensor
    features: list[Tensor]
    extras: dict[str, Tensor]


class Segmenter(nn.Module):
    """A network from images of some modalities to logits.

    Attributes:
        reads_present: whether the work depends on which modalities are there, not only on how many.
            Such a model is not replayed as a CUDA graph.
        features_by_modality: whether the output has features of each modality before fusion; the
            list is empty without them.
        abilities: further keywords that :meth:`forward` takes, see there.
        shares: names of what the model counts while subsets are scored, see :meth:`take_shares`.
        shares_title: their meaning, above a table.
        frozen: true if it was made a constant by :meth:`freeze`.
    """

    reads_present: bool = False
    features_by_modality: bool = True
    abilities: ClassVar[frozenset[str]] = frozenset()
    shares: tuple[str, ...] = ()
    shares_title: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False
        self._held: list[nn.Module] = []

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels of features; empty if the model does not say."""
        return ()

    def forward(self, images: Tensor, present: Sequence[int] | None = None) -> SegmenterOutput:
        """Segment images.

        Models with `abilities` of these names take further keywords, which some methods need:

        - ``fused [P, M', B]``: the modalities that P fusions of each sample have, 1 or 0, at least
          one each. The logits are then ``[P B, K, h_1, w_1]``, one fusion after the other.
        - ``learning [W, B]`` int64: the images of each sample whose features carry gradients, as
          rows of the M'; the features of the others are constants. Or a function that gives them:
          it is called once within the pass, with the levels ``[M', B, C_i, h_i, w_i]`` of all
          images, which carry no gradients there.
        - ``head``: False leaves out everything behind the encoders; the logits are then empty.
        - ``packing``: a `fastseg.models.packing.Packing` of the images that are encoded, at least
          those that ``fused`` marks; the features of the others are zeros.

        Args:
            images: ``[M', B, 3, H, W]``, normalised floats; H and W multiples of 32.
            present: positions of the M' modalities among those of the run, ascending; None: all.
        """
        raise NotImplementedError

    def must_take(self, keyword: str, wanted_by: str) -> None:
        """Refuse a model whose :meth:`forward` lacks a keyword.

        Raises:
            ConfigError: it does; the message names the option that needs it.
        """
        if keyword not in self.abilities:
            raise ConfigError(
                f"{wanted_by} needs a model with {keyword!r} (M-SegFormer has it), and "
                f"{type(self).__name__} does not: take another method or --model.backbone"
            )

    def fusion_and_head(self) -> list[nn.Module]:
        """Modules behind the encoders, which all modalities share; none by default."""
        return []

    def hold(self, modules: Iterable[nn.Module], *, learn: bool = False) -> None:
        """Take modules of this network out of the training: evaluation mode, no gradients.

        Args:
            modules: parts of this network, not itself.
            learn: leave the gradients as they are, and hold the mode alone.
        """
        for module in modules:
            module.eval()
            if not learn:
                module.requires_grad_(False)
            if module not in self._held:
                self._held.append(module)

    def train(self, mode: bool = True) -> Segmenter:
        """Training or evaluation mode; what is held stays in evaluation mode."""
        super().train(mode)
        for module in self._held:
            module.eval()
        return self

    def add_companion(self, name: str, module: nn.Module) -> None:
        """Add a module of a method that reads the output while the network trains.

        Its result is ``output.extras[name]``; it is trained, sharded and saved with the network.
        """
        if not hasattr(self, "companions"):
            self.companions = nn.ModuleDict()
            self.register_forward_hook(_call_companions)
        self.companions[name] = module

    def logits_of_subsets(
        self, images: Tensor, subsets: Sequence[Sequence[int]], missing: str = "drop"
    ) -> Iterator[Tensor]:
        """Logits ``[B, K, h_1, w_1]`` with the modalities of one subset after the other.

        By default one forward pass each; a model whose fusion allows it encodes each image once.

        Args:
            images: ``[M, B, 3, H, W]`` of all modalities.
            subsets: positions of the modalities that are there.
            missing: ``drop`` leaves the others out, ``zero`` replaces them by images of zeros.
        """
        for positions in subsets:
            rows = list(positions)
            if missing == "zero":
                kept = torch.zeros_like(images)
                kept[rows] = images[rows]
                yield self(kept).logits
            else:
                yield self(images[rows], tuple(positions)).logits

    def logits_of_marks(self, images: Tensor, marks: Tensor) -> Tensor:
        """Logits ``[B, K, h_1, w_1]`` where each sample has modalities of its own.

        What is not there is not encoded. Row b equals
        ``self(images[present, b : b + 1], present).logits`` with the modalities of that sample.

        Args:
            images: ``[M, B, 3, H, W]`` of all modalities; what is not there may hold anything.
            marks: ``[M, B]``, 1 for an image that is there, at least one for each sample; best on
                the host, which waits for a device that has them.

        Raises:
            ValueError: the marks do not fit.
        """
        marks = checked_marks(images, marks)
        if {"fused", "packing"} <= self.abilities:
            places, groups = PackingRule(apart=self.reads_present).pack(marks)
            places, fused = (x.to(images.device, non_blocking=True) for x in (places, marks[None]))
            return cast(Tensor, self(images, fused=fused, packing=Packing(places, groups)).logits)
        logits: dict[int, Tensor] = {}
        for present, samples in subsets_of(marks):
            found = self(images[present][:, samples], present).logits
            logits |= dict(zip(samples, found, strict=True))
        return torch.stack([logits[b] for b in range(len(logits))])

    def take_shares(self) -> dict[tuple[int, ...], Tensor]:
        """Shares that :meth:`logits_of_subsets` has counted since the last call, by subset.

        Int64 ``[len(shares), 2]`` on the device: a number and the one it is a share of, both sums
        over samples.
        """
        return {}

    def units(self) -> list[nn.Module]:
        """Modules that are compiled and sharded one by one, each called as a whole with tensors.

        Nothing in them is random or waits for the device. None by default: then nothing is
        compiled, and all parameters are sharded as one group.
        """
        return []

    def regions(self) -> list[nn.Module]:
        """Modules that are compiled, each as one graph; the units by default."""
        return self.units()

    def layers(self) -> list[list[nn.Module]]:
        """Modules by depth, the head last, for `--optim.layer-decay`; the units by default."""
        return [[unit] for unit in self.units()]

    def reduced_modules(self) -> list[nn.Module]:
        """Modules whose own parameters may have the short dtype of a step.

        By default all but normalisations with running statistics.
        """
        return [m for m in self.modules() if getattr(m, "running_mean", None) is None]

    def recompute(self, on: bool) -> None:
        """Compute activations again in the backward pass instead of keeping them, or not.

        Raises:
            ConfigError: the model cannot.
        """
        if on:
            raise ConfigError(
                f"{type(self).__name__} cannot compute activations again: leave out "
                "--model.checkpointing"
            )

    def attention_levels(self, images: int, side: int) -> list[AttentionLevel]:
        """Attention layers whose kernel may be chosen by measurement; none by default.

        Args:
            images: number of images in one call, all modalities together.
            side: height and width of an image, in pixels.
        """
        return []

    def modality_parameters(self, modality: str) -> list[nn.Parameter]:
        """Parameters that serve one modality alone, by its name; none by default: all share all."""
        return []

    def load_encoder(self, path: Path) -> object:
        """Set the encoder from a file of published weights; what it returns says what was done.

        Raises:
            ConfigError: the model knows no such files.
        """
        raise ConfigError(
            f"{type(self).__name__} knows no files of encoder weights: leave out --model.weights"
        )

    def first_encoder(self) -> str:
        """The encoder's first weights where no file of weights is given, for people."""
        return "no --model.weights: the encoder starts from random weights"

    def constants_of_files(self) -> dict[str, str]:
        """Digests of files that weights are of no use without, by name; those of its parts."""
        parts = [m for m in self.modules() if m is not self and isinstance(m, Segmenter)]
        return {name: digest for m in parts for name, digest in m.constants_of_files().items()}

    def freeze(self, dtype: torch.dtype = torch.float32) -> Segmenter:
        """Make this network a constant, in place: evaluation mode, no gradients.

        Weights are kept in ``dtype``, which the images have to have then. It cannot be trained or
        loaded into any more, and freezing it again changes nothing.
        """
        if not self.frozen:
            self.frozen = True
            self.eval().requires_grad_(False)
            self.make_constant(dtype)
        return self

    def make_constant(self, dtype: torch.dtype) -> None:
        """Compute once what does not depend on the input, for :meth:`freeze`."""
        self.to(dtype)

    def constants(self) -> list[Tensor]:
        """Tensors that :meth:`make_constant` has made, beside parameters and buffers."""
        return []


def _call_companions(network: nn.Module, inputs: object, output: SegmenterOutput) -> Any:
    """Forward hook: the output with the results of the network's companions."""
    if not network.training:
        return output
    companions = cast(nn.ModuleDict, network.companions)
    extras = {name: module(output) for name, module in companions.items()}
    return OutputWithExtras(output.logits, output.features, extras)
