"""The end of a run: its networks on every subset, the table, results.csv, the report's pictures."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastseg
from fastseg import kernels
from fastseg.config.serialise import read_config, to_dict
from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.errors import ConfigError
from fastseg.evaluation.details import detail_tables
from fastseg.evaluation.feature_measures import FeatureMeasures
from fastseg.evaluation.image_scores import ImageScores, chosen_samples
from fastseg.evaluation.protocol_tables import read_protocol_tables
from fastseg.evaluation.protocols.modality_subsets import logits_of_subsets
from fastseg.evaluation.scores import score_networks, subset_results, table
from fastseg.evaluation.subsets import run_subsets
from fastseg.models import Segmenter
from fastseg.pipelines import Batch, ModalitySpec, build_loader
from fastseg.pipelines.faults.sensor_faults import describe
from fastseg.pipelines.inspection.display import picture
from fastseg.pipelines.synthetic import shown_name
from fastseg.report.details import read_details, write_details
from fastseg.report.metrics_log import MetricsLog
from fastseg.report.page.html import write_report
from fastseg.report.results import (
    Picture,
    RunReport,
    SubsetResult,
    read_results,
    write_results,
)


def write_run_report(
    context: RunContext,
    networks: Mapping[str, Segmenter],
    history: list[dict[str, Any]],
    folder: Path,
    run: Path | None = None,
    beside: Mapping[str, RunReport] | None = None,
) -> str:
    """Score the networks, write ``results.csv`` and ``report.html``; returns the table.

    Where there is more to say of a network it is in the report, too, and in ``details.csv``.

    All processes score; rank 0 writes.

    Args:
        context: of the run.
        networks: by name, on its device.
        history: rows of ``metrics.jsonl``.
        folder: folder to write into.
        run: the run's own, if that is another.
        beside: other runs by name, see `reports_of_files`.
    """
    images: dict[str, ImageScores] = {}
    matrices = score_networks(context, networks, images=images)
    results = subset_results(context, matrices)
    details = detail_tables(context, networks)
    if not context.ranks.is_first:
        return table(context, results)
    full = run_subsets(context)[-1].name
    write_results(folder / "results.csv", results, context.spec.classes)
    if details:
        write_details(folder / "details.csv", details)
    measures = FeatureMeasures(context)
    report = replace(
        _page(context, history, run or folder),
        results=results,
        confusions={name: found[full].counts.cpu().numpy() for name, found in matrices.items()},
        pictures=take_pictures(context, networks, images, measures),
        details=details,
        beside=beside or {},
        conditions=[t for n, found in images.items() if (t := found.by_condition(n)) is not None],
    )
    if (features := measures.table()) is not None:
        report = replace(report, features=[features])
    write_report(folder / "report.html", report)
    return table(context, results, details)


def write_report_of_files(
    context: RunContext,
    history: list[dict[str, Any]],
    folder: Path,
    run: Path,
    beside: Mapping[str, RunReport] | None = None,
) -> None:
    """Write ``report.html`` from what the files of a run say: no network and no data is read.

    The page has no confusion matrix and no pictures; before the end of the run, no scores either.

    Args:
        context: of the run.
        history: rows of its ``metrics.jsonl``.
        folder: folder to write into.
        run: the run's own.
        beside: other runs by name, see `reports_of_files`.

    Raises:
        ConfigError: its ``results.csv`` or ``details.csv`` is not one of a run, or is of other
            classes.
    """
    report = _page(context, history, run)
    try:
        if (run / "results.csv").exists():
            results, classes = read_results(run / "results.csv")
            if classes != report.classes:
                raise ValueError(
                    f"{run / 'results.csv'} has other classes than {context.spec.name}"
                )
            report = replace(report, results=results)
        if (run / "details.csv").exists():
            report = replace(report, details=read_details(run / "details.csv"))
    except ValueError as error:
        raise ConfigError(f"{error}; move the file away, and the page is written without") from None
    write_report(folder / "report.html", replace(report, beside=beside or {}))


def reports_of_files(runs: Sequence[Path], first: Path) -> dict[str, RunReport]:
    """Settings, history and scores of runs by name, from their files.

    Runs of one name are told apart by a prime behind it.

    Args:
        runs: folders of runs.
        first: folder of the run that they stand beside.

    Raises:
        ConfigError: a file is not one of a run.
    """
    found: dict[str, RunReport] = {}
    taken = {read_config(first / "config.json").name}
    for run in runs:
        config = read_config(run / "config.json")
        name = config.name
        while name in taken:
            name += "'"
        taken.add(name)
        results: list[SubsetResult] = []
        try:
            if (run / "results.csv").exists():
                results, _ = read_results(run / "results.csv")
        except ValueError as error:
            raise ConfigError(f"{error}; move the file away, or leave {run} out") from None
        found[name] = RunReport(
            title=name,
            config=to_dict(config),
            history=MetricsLog(run / "metrics.jsonl", writes=False).rows(),
            results=results,
            classes=(),
            palette=np.zeros((0, 3), np.uint8),
        )
    return found


def _page(context: RunContext, history: list[dict[str, Any]], run: Path) -> RunReport:
    """What is known of a run before anything is scored."""
    spec, config = context.spec, context.config
    name = shown_name(spec.name, config.data.root)
    tables, note = read_protocol_tables(run)
    if note:
        say(f"note: {note}")
    return RunReport(
        title=f"{config.name}: {name}, {config.model.backbone}",
        config=to_dict(config),
        history=history,
        results=[],
        classes=tuple(spec.classes),
        palette=np.asarray(spec.palette, dtype=np.uint8),
        facts=run_facts(context, run),
        compared=context.method.compared,
        protocols=tables,
        protocols_note=note,
    )


def check_figures() -> None:
    """Before a run: see that the figures of its report can be drawn.

    Raises:
        ConfigError: they cannot.
    """
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError(
            f"the report of a run needs matplotlib, which does not import ({error}): "
            "pip install matplotlib"
        ) from None


def take_pictures(
    context: RunContext,
    networks: Mapping[str, Segmenter],
    images: Mapping[str, ImageScores] | None = None,
    measures: FeatureMeasures | None = None,
) -> list[Picture]:
    """Predictions for the worst and best samples, and for some of all others.

    Args:
        context: of the run.
        networks: by name, on its device.
        images: scores of the images by network. The judge is the network that is compared, or the
            last one.
        measures: gets the samples, too.
    """
    # one sample is a batch: a sample's number is that of its step
    loader = build_loader(replace(context.config.data, eval_batch_size=1), train=False)
    compared = context.method.compared
    judge = [name for name in images or {} if compared is None or name == compared[1]][-1:]
    scores = {name: images[name].scores for name in judge} if images else {}
    chosen = chosen_samples(scores, loader.num_samples, context.config.evaluation.pictures)
    pictures = []
    try:
        for index, note in chosen.items():
            for batch in loader.batches(index, index + 1):
                pictures.append(replace(_picture(context, networks, batch), note=note))
                if measures is not None:
                    measures.add(networks, batch)
    finally:
        loader.close()
    return pictures


def _picture(context: RunContext, networks: Mapping[str, Segmenter], batch: Batch) -> Picture:
    """The only sample of a batch and what the networks say of it."""
    images = batch.images.to(context.device)
    predictions = {}
    for name, network in networks.items():
        with torch.no_grad(), context.autocast():
            every = run_subsets(context)
            for subset, logits in logits_of_subsets(context, network, images, every):
                classes = kernels.upsample_argmax(logits, images.shape[-2:])[0]
                predictions[name, subset.name] = classes.cpu().numpy()
    return Picture(
        sample_id=batch.sample_ids[0],
        images={
            modality.name: displayable(modality, image)
            for modality, image in zip(context.modalities, batch.images[:, 0], strict=True)
        },
        label=batch.labels[0].to(torch.uint8).numpy(),
        predictions=predictions,
    )


def displayable(modality: ModalitySpec, image: Tensor) -> NDArray[np.uint8]:
    """The picture ``[H, W, 3]`` of a normalised ``[3, H, W]``."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (modality.mean, modality.std))
    return picture(modality, (image * std + mean).numpy())


def run_facts(context: RunContext, folder: Path) -> dict[str, str]:
    """Facts that a reader needs to repeat the run, by name."""
    config = context.config
    return {
        "command": f"python -m fastseg.train --config {folder / 'config.json'}",
        "seed": str(config.seed),
        "data": f"{config.data.root}, {config.data.eval_split} split for the scores",
        "sensor faults": f"{describe(config.data.corruption)} in training, "
        f"{describe(config.data.eval_corruption)} in the scores",
        "missing modalities": config.evaluation.missing,
        "device": f"{context.device}, {config.precision}, {torch.get_num_threads()} threads, "
        f"{context.ranks.world} processes",
        "versions": f"fastseg {fastseg.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()} on {sys.platform}",
    }
