"""Interface of a method: its networks, the loss terms of a step by name, and the draws of a step.

The engine runs the stages of a method without knowing which one it is. A method is a subclass of
`Method` in a file of its own, registered by `register`. All networks of a stage are called by the
names that the stage gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from fastseg.distributed.ranks import Ranks
from fastseg.errors import ConfigError
from fastseg.methods.draws import Draws
from fastseg.methods.losses.needs import must_give_features
from fastseg.methods.seeds import Seeds, Share, draw_modalities, draw_modalities_of_samples
from fastseg.methods.stage import LossWeights, Stage
from fastseg.models.interface import Segmenter, SegmenterOutput
from fastseg.pipelines import DataConfig

Forward = Callable[..., SegmenterOutput]
"""A network as a loss sees it: ``(images [M', B, 3, H, W], present)`` to its output."""


@dataclass(frozen=True)
class MethodOptions:
    """Forms of a method's loss terms; a method adds its own by inheritance."""

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise ConfigError where options do not fit the classes of a data set."""


@dataclass(frozen=True)
class StepPlan:
    """Facts about one share of a step that the host knows before the step.

    Attributes:
        stage: the stage that is trained.
        modalities: number of modalities, M.
        present: positions of the modalities that the networks which learn encode.
        batch: number of samples in this share, B.
        share: part of the whole step; draw for all samples and take ``share.rows(batch)``, so that
            a step does not depend on the number of processes.
        seeds: function that gives the seed of a purpose.
        kept: ``[M, B]`` int64 on the host, 1 for a modality that is left of a sample, where each
            sample has its own; None where ``present`` holds for all.
        sample_ids: names of the B samples; empty in a rehearsal.
    """

    stage: Stage
    modalities: int
    present: list[int]
    batch: int
    share: Share
    seeds: Seeds
    kept: Tensor | None = None
    sample_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepInputs:
    """Inputs of the loss terms of a step.

    Attributes:
        stage: stage that names the networks, the active terms and their weights.
        images: ``[M, B, 3, H, W]``, all modalities, in the dtype of the networks.
        labels: ``[B, H, W]`` integer, 255 ignored.
        draws: draws of the step.
        networks: the networks by name; those that learn record gradients, the frozen ones do not.
        settled: those that learn, as targets of others: evaluation mode, no gradients.
        modules: all networks by name, to read buffers of; they are called by the above.
        mean_over_processes: function that averages a tensor over all processes.
        still: filled by the method: marks on the device, by prefix of the parameters' names in the
            networks that learn together, that say whether these do not move in this step.
    """

    stage: Stage
    images: Tensor
    labels: Tensor
    draws: Draws
    networks: Mapping[str, Forward]
    settled: Mapping[str, Forward] = field(default_factory=dict)
    modules: Mapping[str, Segmenter] = field(default_factory=dict)
    mean_over_processes: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    still: dict[str, Tensor] = field(default_factory=dict)

    def seen(self) -> Tensor:
        """The images ``[M', B, 3, H, W]`` that networks which learn see in this step."""
        seen = self.draws.of(self.images)
        if self.stage.modalities == "zero":
            kept = self.draws.kept
            seen = seen * kept.to(seen.dtype).view(len(kept), -1, 1, 1, 1)
        return seen

    def output_of(self, learner: str, **keywords: Any) -> SegmenterOutput:
        """The output of a network that learns, of the modalities that are left in this step."""
        if self.stage.drops_per_sample:
            keywords |= {"fused": self.draws.kept[None], **self.draws.packing_keyword}
        return self.networks[learner](self.seen(), self.draws.present, **keywords)

    def marks_of(self, encoded: Tensor) -> Tensor | None:
        """``[M', B]`` int64, 1 for what is left of a sample; None where that is all of ``encoded``.

        Args:
            encoded: of the present modalities, ``[M', B, ...]``.
        """
        if self.stage.modalities != "zero" and not self.stage.drops_per_sample:
            return None
        return self.draws.kept.expand(encoded.shape[:2])


@dataclass(frozen=True)
class Surroundings:
    """Facts about a run that a method may need to prepare a stage.

    Attributes:
        data: data of the run.
        modalities: their names, in the order of the run.
        folder: folder of the run; None where nothing may be written, as in a forecast.
        ranks: the processes.
    """

    data: DataConfig
    modalities: tuple[str, ...]
    folder: Path | None
    ranks: Ranks


@dataclass(frozen=True)
class NewModel:
    """A function that makes the model of a run, with random weights.

    Attributes:
        make: makes it.
        modalities: names of the modalities, in the order of the run.
    """

    make: Callable[[], Segmenter]
    modalities: tuple[str, ...]

    def __call__(self) -> Segmenter:
        """Another one."""
        return self.make()


class Method:
    """One way of training networks; options are those of a run.

    Attributes:
        name: name of the method in ``config.method``.
        networks: names of all networks that its stages may have, in the order of tables.
        compared: the two networks whose difference is the gain in tables: from, to.
        weights: type of the weights of its loss terms.
        options_type: type of its options.
        feature_terms: loss terms that read features of each modality, which not every model has.
        seen: in words, what networks see while they learn, where it is not as their stage says.
    """

    name: ClassVar[str]
    networks: ClassVar[tuple[str, ...]]
    compared: ClassVar[tuple[str, str] | None] = None
    weights: ClassVar[type[LossWeights]] = LossWeights
    options_type: ClassVar[type[MethodOptions]] = MethodOptions
    feature_terms: ClassVar[frozenset[str]] = frozenset()
    seen: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    def check(self, name: str, stage: Stage) -> None:
        """Refuse a stage that makes no sense for the method; everything is taken by default.

        Raises:
            ValueError: with the stage's ``name`` and what to change.
        """

    def build(self, network: str, new: NewModel) -> Segmenter:
        """A network with random weights; by default the model of the run.

        Args:
            network: name of the network.
            new: function that makes the model of the run, and says its modalities.
        """
        return new()

    def check_models(self, stage: Stage, models: Mapping[str, Segmenter]) -> None:
        """Refuse models that the method cannot train; called before the first stage.

        Args:
            stage: one of the run's stages.
            models: the networks that it trains and needs by name, without memory.

        Raises:
            ConfigError: with what to change.
        """
        compared = sorted(stage.losses.active().keys() & self.feature_terms)
        for name in (*stage.learners, *stage.targets) if compared else ():
            must_give_features(models[name], self.name, compared)
        for name in stage.learners:
            if stage.drops_per_sample:
                models[name].must_take("fused", "--stages.*.modalities-per sample")
            if (start := stage.start_of(name)) in models:
                _must_fit(name, models[name], start, models[start])

    def first_weights(
        self, stage: Stage, name: str, network: Segmenter, finished: Mapping[str, Segmenter]
    ) -> None:
        """Set a network that is about to learn from those that are finished, by name.

        By default it becomes a copy of the one that ``stage.start`` names.
        """
        network.load_state_dict(finished[stage.start_of(name)].state_dict())

    def hold(self, stage: Stage, learning: Mapping[str, Segmenter]) -> None:
        """Take out of the training what does not learn in a stage, by `Segmenter.hold`."""

    def prepare(
        self, stage: Stage, learning: Mapping[str, Segmenter], surroundings: Surroundings
    ) -> None:
        """Make ready what the method itself keeps for a stage.

        Called on every process after `hold`, before the networks are spread and the optimizer is
        made.
        """

    def rate_factor(self, stage: Stage, network: str) -> float:
        """Factor on the learning rate of the stage for a network."""
        return 1.0

    def present(self, stage: Stage, modalities: int, seeds: Seeds) -> list[int]:
        """Positions of the modalities that are left in a step, ascending; equal on all ranks.

        All where each sample has its own.
        """
        if stage.modalities_per == "sample":
            return list(range(modalities))
        return draw_modalities(stage.modalities, modalities, seeds("modalities"))

    def kept(self, stage: Stage, modalities: int, samples: int, seeds: Seeds) -> Tensor:
        """``[samples, M]`` int64, 1 for the modalities that are left of each sample of a step."""
        return draw_modalities_of_samples(modalities, samples, seeds("modalities of samples"))

    def reads_dropped(self, stage: Stage) -> bool:
        """Whether terms read features of what a sample lacks; if not, they are left zero."""
        return True

    def draw(self, plan: StepPlan) -> dict[str, Tensor]:
        """Draws of the method's own for one share of a step, int64 on the host, by name."""
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


def _must_fit(name: str, network: Segmenter, start: str, first: Segmenter) -> None:
    """Refuse to start a network from another architecture; one that holds the other is not one."""
    own, others = (
        {key: tuple(x.shape) for key, x in model.state_dict().items()} for model in (network, first)
    )
    if own.keys() & others.keys() and any(own.get(key) != others[key] for key in others):
        raise ConfigError(
            f"the {name} cannot start from the {start}, which is another model: choose another "
            "--stages.*.start, such as encoder or random, or leave out --model.teacher-backbone"
        )


METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Make a method known by its name; usable as a decorator."""
    METHODS[method.name] = method
    return method
