"""Scores of every network on every subset of the modalities, as results and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastseg.engine.context import RunContext
from fastseg.evaluation.image_scores import ImageScores
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.protocols.modality_subsets import evaluate_subsets
from fastseg.evaluation.scoring.scorer import Scorer, ScoringConfig
from fastseg.evaluation.scoring.views import ViewsConfig
from fastseg.evaluation.subsets import run_subsets
from fastseg.models import Segmenter
from fastseg.pipelines import build_loader
from fastseg.pipelines.faults.sensor_faults import describe
from fastseg.pipelines.tools.progress import tracked
from fastseg.report.details import DetailTable
from fastseg.report.results import SubsetResult
from fastseg.report.table import format_details, format_table


def score_networks(
    context: RunContext,
    networks: Mapping[str, Segmenter],
    views: ViewsConfig | None = None,
    images: dict[str, ImageScores] | None = None,
) -> dict[str, dict[str, ConfusionMatrix]]:
    """Confusion matrix of every network on every subset over the whole evaluation split.

    Shares that a network counts are afterwards those of this split, see `Segmenter.take_shares`.

    Args:
        context: of the run.
        networks: by name, on its device.
        views: what is averaged for each sample; None: whole images as they are.
        images: gets, without ``views``, the scores of the images by network.
    """
    ranks = context.ranks
    for network in networks.values():
        network.take_shares()
    if views is not None and views.active:
        return _by_views(Scorer(context, networks, ScoringConfig(views)))
    loader = build_loader(context.config.data, train=False, rank=ranks.rank, world=ranks.world)
    total = loader.steps_per_epoch
    try:
        loader.check()
        found = {}
        for name, network in networks.items():
            title = f"scoring the {name}"
            batches = tracked(loader.batches(), title, total, shown=ranks.is_first)
            if images is None:
                found[name] = evaluate_subsets(context, network, batches)
            else:
                images[name] = ImageScores(context, loader.files)
                found[name] = evaluate_subsets(context, network, batches, images[name].count)
                images[name].gather()
        return found
    finally:
        loader.close()


def _by_views(scorer: Scorer) -> dict[str, dict[str, ConfusionMatrix]]:
    """The same of a scorer, whose views are averaged."""
    missing = scorer.context.config.evaluation.missing
    cases = [scorer.case(subset, missing=missing) for subset in scorer.subsets]
    scorer.count(cases)
    return {
        network: {case.subset.name: scorer.matrix(network, case) for case in cases}
        for network in scorer.networks
    }


def subset_results(
    context: RunContext, matrices: dict[str, dict[str, ConfusionMatrix]]
) -> list[SubsetResult]:
    """One result per network and subset."""
    faults = describe(context.config.data.eval_corruption)
    return [
        SubsetResult(network, subset, scores.miou_all, scores.miou_present, scores.iou, faults)
        for network, found in matrices.items()
        for subset, scores in ((name, matrix.scores()) for name, matrix in found.items())
    ]


def table(
    context: RunContext, results: list[SubsetResult], details: Sequence[DetailTable] = ()
) -> str:
    """The results in the papers' layout, then the tables beside them."""
    order = [subset.name for subset in run_subsets(context)]
    scores = format_table(results, order, compared=context.method.compared)
    return "\n\n".join([scores, *map(format_details, details)])
