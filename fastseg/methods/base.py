"""Interface of a method: its networks, the loss terms of a step by name, and the draws of a step.

The engine runs the stages of a method without knowing which one it is. A method is a subclass of
`Method` in a file of its own, registered by `register`. All networks of a stage are called by the
names that the stage gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastseg.methods.draws import Draws
from fastseg.methods.seeds import Seeds, Share, draw_modalities
from fastseg.methods.stage import LossWeights, Stage
from fastseg.models.interface import Segmenter, SegmenterOutput

Forward = Callable[..., SegmenterOutput]
"""A network as a loss sees it: ``(images [M', B, 3, H, W], present)`` to its output."""


@dataclass(frozen=True)
class MethodOptions:
    """Forms of a method's loss terms; a method adds its own by inheritance."""


@dataclass(frozen=True)
class StepInputs:
    """Inputs of the loss terms of a step.

    Attributes:
        stage: stage that names the networks, the active terms and their weights.
        images: ``[M, B, 3, H, W]``, all modalities, in the dtype of the networks.
        labels: ``[B, H, W]`` integer, 255 ignored.
        draws: draws of the step.
        networks: the networks by name; those that learn record gradients, the frozen ones do not.
    """

    stage: Stage
    images: Tensor
    labels: Tensor
    draws: Draws
    networks: Mapping[str, Forward]

    def seen(self) -> Tensor:
        """The images ``[M', B, 3, H, W]`` that networks which learn see in this step."""
        seen = self.draws.of(self.images)
        if self.stage.modalities == "zero":
            seen = seen * self.draws.kept.to(seen.dtype).view(-1, 1, 1, 1, 1)
        return seen


class Method:
    """One way of training networks; options are those of a run.

    Attributes:
        name: name of the method in ``config.method``.
        networks: names of all networks that its stages may have, in the order of tables.
        compared: the two networks whose difference is the gain in tables: from, to.
        weights: type of the weights of its loss terms.
        options_type: type of its options.
    """

    name: ClassVar[str]
    networks: ClassVar[tuple[str, ...]]
    compared: ClassVar[tuple[str, str] | None] = None
    weights: ClassVar[type[LossWeights]] = LossWeights
    options_type: ClassVar[type[MethodOptions]] = MethodOptions

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    def check(self, name: str, stage: Stage) -> None:
        """Refuse a stage that makes no sense for the method; everything is taken by default.

        Raises:
            ValueError: with the stage's ``name`` and what to change.
        """

    def build(self, network: str, new: Callable[[], Segmenter]) -> Segmenter:
        """A network with random weights; by default the model of the run.

        Args:
            network: name of the network.
            new: function that makes the model of the run.
        """
        return new()

    def rate_factor(self, stage: Stage, network: str) -> float:
        """Factor on the learning rate of the stage for a network."""
        return 1.0

    def present(self, stage: Stage, modalities: int, seeds: Seeds) -> list[int]:
        """Positions of the modalities that are left in a step, ascending; equal on all ranks."""
        return draw_modalities(stage.modalities, modalities, seeds("modalities"))

    def draw(
        self, stage: Stage, modalities: int, present: list[int], batch: int, share: Share,
        seeds: Seeds,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Draws of the method's own for one share of a step, int64 on the host, by name.

        Args:
            stage: the stage that is trained.
            modalities: number of modalities, M.
            present: positions of the modalities that the networks which learn encode.
            batch: number of samples in this share.
            share: part of the whole step; draw for all samples and take ``share.rows(batch)``,
                so that a step does not depend on the number of processes.
            seeds: function that gives the seed of a purpose.
        """
        return {}

    def terms(self, step: StepInputs) -> dict[str, Tensor]:
        """Every active loss term of the stage as an fp32 scalar, in a fixed order."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Entries of a training state about the method, read again by `changed_meaning`."""
        return {}

    def changed_meaning(self, stage: Stage, state: Mapping[str, Any]) -> str | None:
        """A sentence where the settings of a run meant another thing when ``state`` was saved."""
        return None


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """``sum_i w_i l_i`` over the terms in their order, an fp32 scalar."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Make a method known by its name; usable as a decorator."""
    METHODS[method.name] = method
    return method
