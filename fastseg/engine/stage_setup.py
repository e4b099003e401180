"""A stage of a run made ready: what is trained, and the networks that take part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from fastseg.config.run import TrainConfig
from fastseg.engine.optim.learning_rate import learning_rate
from fastseg.methods.base import Method
from fastseg.methods.seeds import derive_seed
from fastseg.methods.stage import Stage
from fastseg.models import Segmenter


@dataclass(frozen=True)
class StageSetup:
    """Facts about a stage that the engine has before it has networks.

    Attributes:
        config: config of the run, with a precision that is decided.
        name: name of the stage.
        index: its position in the run, which its random draws depend on.
        stage: networks, modalities, losses and length of the training.
        steps_per_epoch: optimizer steps of one epoch.
    """

    config: TrainConfig
    name: str
    index: int
    stage: Stage
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Length of the stage in optimizer steps."""
        return self.stage.num_steps(self.steps_per_epoch)

    def rate(self, step: int) -> float:
        """The learning rate of a step, before the share of a network or a layer."""
        return learning_rate(self.stage, step, self.steps_per_epoch)

    @cached_property
    def method(self) -> Method:
        """The method of the run, with its options and what it keeps for this stage."""
        return self.config.build_method()

    def seed(self, step: int, purpose: str, part: int = 0) -> int:
        """The seed of one purpose of one step, see `derive_seed`."""
        return derive_seed(self.config.seed, self.index, step, purpose, part)


@dataclass(frozen=True)
class StageNetworks:
    """The networks of a stage by name.

    Attributes:
        learning: networks that the optimizer changes; the first is validated.
        frozen: constants that the others learn from, whole on every process: they are small.
    """

    learning: dict[str, Segmenter]
    frozen: dict[str, Segmenter] = field(default_factory=dict)

    @property
    def main(self) -> Segmenter:
        """The first network that learns."""
        return next(iter(self.learning.values()))

    def __iter__(self) -> Iterator[Segmenter]:
        """All of them, those that learn first."""
        yield from self.learning.values()
        yield from self.frozen.values()

    def together(self) -> nn.Module:
        """The networks that learn as one module: the network itself where it is alone.

        Parameters of several are called ``<network>.<parameter>``.
        """
        return joined(self.learning)


def joined(networks: dict[str, Segmenter]) -> nn.Module:
    """Networks as one module with their names in front; a single one as it is."""
    values: Iterable[nn.Module] = networks.values()
    return next(iter(values)) if len(networks) == 1 else nn.ModuleDict(networks)
