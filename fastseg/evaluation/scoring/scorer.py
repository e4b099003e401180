"""Scores of networks in any cases, each input read once and every result kept for the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from fastseg.engine.context import RunContext
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.scoring.cases import Case
from fastseg.evaluation.scoring.counts import Counts
from fastseg.evaluation.scoring.logits import (
    logits_of_torn_sensors,
    logits_of_whole_sensors,
    torn,
)
from fastseg.evaluation.scoring.measures import Measures, in_float32, measure, resampled, rounded
from fastseg.evaluation.scoring.published import PublishedConfig
from fastseg.evaluation.scoring.views import LogitsOf, ViewsConfig, predictions_of
from fastseg.evaluation.subsets import Subset, run_subsets
from fastseg.models import Segmenter
from fastseg.pipelines import Batch, CorruptionConfig, build_loader
from fastseg.pipelines.datasets.path_templates import case_of, conditions_of
from fastseg.pipelines.faults.missing_elements import kept_elements
from fastseg.pipelines.faults.sensor_faults import describe
from fastseg.pipelines.tools.progress import tracked

Cell = tuple[str, ...]
"""Conditions of a sample in the order of the spec, then its failure case.

With ``--published.substring`` the path of its first image stands behind them.
"""


@dataclass(frozen=True)
class ScoringConfig:
    """How protocols score.

    Attributes:
        views: what is averaged for each sample.
        resamples: R draws of the images, for intervals; 0: none.
        seed: of these draws and of masks.
        published: defects of the released metric code.
    """

    views: ViewsConfig = field(default_factory=ViewsConfig)
    resamples: int = 0
    seed: int = 0
    published: PublishedConfig = field(default_factory=PublishedConfig)


class Scorer:
    """Scores some networks of a run on its evaluation split.

    All processes of a launch make it together and call the same methods; each reads its share of
    the samples, and all get the sums.

    Args:
        context: of the run; ``config.data.eval_corruption`` are the faults of plain cases.
        networks: by name, on the device of the run; they are left in eval mode.
        config: see there.

    Attributes:
        files: the split.
        subsets: all subsets of the modalities, the full set last.
        cells: conditions and failure case of every sample.

    Raises:
        DataError: the split cannot be read.
        ConfigError: a setting has no meaning with several processes.
    """

    def __init__(
        self,
        context: RunContext,
        networks: Mapping[str, Segmenter],
        config: ScoringConfig | None = None,
    ) -> None:
        self.context, self.networks = context, dict(networks)
        self.config = config or ScoringConfig()
        letters = [modality.letter for modality in context.modalities]
        self.config.published.check(context.ranks.world, letters)
        loader = build_loader(
            context.config.data, train=False, rank=context.ranks.rank, world=context.ranks.world
        )
        try:
            loader.check()
            self.files = loader.files
        finally:
            loader.close()
        self.subsets = run_subsets(context)
        spec = self.files.spec
        self.cells: list[Cell] = [
            (*conditions_of(spec, name), case_of(spec, name)) for name in self.files.sample_ids
        ]
        if self.config.published.substring:
            paths = (
                self.files.path(i, spec.modalities[0].files[0]) for i in range(len(self.files))
            )
            self.cells = [(*c, str(path)) for c, path in zip(self.cells, paths, strict=True)]
        # with resamples every image is a bin of its own, else those of one cell share one
        keys: Sequence[object] = range(len(self.files)) if self.config.resamples else self.cells
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self._bins = [numbers[key] for key in keys]
        self._cell_of_bin = dict(zip(self._bins, self.cells, strict=True))
        self._found: dict[tuple[str, Case], Counts] = {}
        self._weights: dict[tuple[bool, ...], Tensor] = {}

    @property
    def full(self) -> Subset:
        """The subset that holds every modality."""
        return self.subsets[-1]

    @property
    def faults(self) -> CorruptionConfig:
        """The faults that the command asks for."""
        return self.context.config.data.eval_corruption

    def case(self, subset: Subset, **changes: object) -> Case:
        """A `Case` with the faults that the command asks for."""
        return Case(subset, **{"faults": self.faults, **changes})  # type: ignore[arg-type]

    def count(self, cases: Iterable[Case]) -> None:
        """Count every network in every case; what is known already is not counted again."""
        new = [
            case
            for case in dict.fromkeys(map(self._settled, cases))
            if any((network, case) not in self._found for network in self.networks)
        ]
        new.sort(key=lambda case: describe(case.faults))
        for _, alike in groupby(new, key=lambda case: case.faults):
            self._pass(list(alike))

    def score(
        self, network: str, case: Case, chosen: Callable[[Cell], bool] = lambda cell: True
    ) -> Measures:
        """Scores of a network in a case, over the samples of the chosen cells."""
        self.count([case])
        counts = self._found[network, self._settled(case)]
        among = tuple(chosen(self._cell_of_bin[b]) for b in range(len(self._cell_of_bin)))
        if among not in self._weights:
            self._weights[among] = resampled(among, self.config.resamples, self.config.seed)
        measures = measure(counts, self._weights[among])
        if self.config.published.float32 and all(among):
            measures = in_float32(measures, counts)
        return rounded(measures) if self.config.published.rounded else measures

    def matrix(self, network: str, case: Case) -> ConfusionMatrix:
        """Confusion matrix of a network in a case over the split."""
        self.count([case])
        found = ConfusionMatrix(self.context.num_classes)
        found.counts = self._found[network, self._settled(case)].confusion.sum(0)
        return found

    def number_of(self, chosen: Callable[[Cell], bool]) -> int:
        """Number of samples in the chosen cells."""
        return sum(map(chosen, self.cells))

    def _settled(self, case: Case) -> Case:
        return case.settled(len(self.files.modalities))

    def _pass(self, cases: list[Case]) -> None:
        """One pass over the split with one kind of faults."""
        context, ranks = self.context, self.context.ranks
        data = replace(context.config.data, eval_corruption=cases[0].faults)
        loader = build_loader(data, train=False, rank=ranks.rank, world=ranks.world)
        bins, k = len(self._cell_of_bin), context.num_classes
        counts = {
            (name, case): Counts(bins, k, context.device, edges=case.subset == self.full)
            for name in self.networks
            for case in cases
        }
        several = f"{len(cases)} inputs" if len(cases) > 1 else "complete input"
        title = f"scoring {several}, faults {describe(cases[0].faults)}"
        own = iter(range(ranks.rank, len(self.files), ranks.world))
        try:
            steps = loader.steps_per_epoch
            for batch in tracked(loader.batches(), title, steps, shown=ranks.is_first):
                indices = [next(own) for _ in batch.sample_ids]
                self._count_batch(batch.to(context.device), indices, cases, counts)
        finally:
            loader.close()
        for key, found in counts.items():
            self._found[key] = found.total(ranks)

    def _count_batch(
        self,
        batch: Batch,
        indices: Sequence[int],
        cases: Sequence[Case],
        counts: Mapping[tuple[str, Case], Counts],
    ) -> None:
        """Count the predictions of every network in every case for the samples ``indices``."""
        size = (batch.labels.shape[-2], batch.labels.shape[-1])
        places = [self._bins[index] for index in indices]
        kinds: dict[tuple[str, float], list[Case]] = {}
        for case in cases:
            kinds.setdefault((case.missing, case.removed), []).append(case)
        for alike in kinds.values():
            images = self._images(batch.images, indices, alike[0].removed)
            for name, network in self.networks.items():
                network.eval()
                logits_of = self._logits_of(network, alike)
                with torch.no_grad(), self.context.autocast():
                    found = predictions_of(logits_of, images, size, self.config.views)
                    for case, classes in zip(alike, found, strict=True):
                        counts[name, case].add(classes, batch.labels, places)

    def _images(self, images: Tensor, indices: Sequence[int], removed: float) -> Tensor:
        """What the networks are fed: the images, and with missing elements torn ones behind."""
        if removed == 1:
            return images
        kept = kept_elements(self.files, indices, images.shape[2:], removed, self.config.seed)
        return torn(images, torch.from_numpy(kept).to(images.device))

    def _logits_of(self, network: Segmenter, cases: list[Case]) -> LogitsOf:
        positions = [case.subset.positions for case in cases]
        if cases[0].removed == 1:
            return partial(
                logits_of_whole_sensors, network, subsets=positions, missing=cases[0].missing
            )
        return partial(logits_of_torn_sensors, network, subsets=positions)
