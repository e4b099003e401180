"""From options to samples, and to the settings that their predictions depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastseg.checkpoint.weights import weights_digest
from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.pipelines.tools.names import readable
from fastseg.prediction.folders import of_folder
from fastseg.prediction.listed_files import of_list
from fastseg.prediction.options import PredictConfig
from fastseg.prediction.predictor import Predictor
from fastseg.prediction.samples import Sample, of_split, without


def find_samples(options: PredictConfig, context: RunContext) -> list[Sample]:
    """The samples that the options name, each with at least one sensor.

    Raises:
        ConfigError: ``--without`` names what is no sensor.
        DataError: there are none, or one of them has no sensor.
    """
    modalities, data = context.modalities, context.config.data
    if options.listed is not None:
        found = of_list(options.listed, modalities, strict=options.unreadable == "error")
    elif options.folder is not None:
        found = of_folder(options.folder, modalities, say if context.ranks.is_first else _silent)
    else:
        found = of_split(context.spec, data.root, data.eval_split, modalities)
    return without(found, options.without, [modality.name for modality in modalities])


def settings(
    options: PredictConfig, predictor: Predictor, network: str, weights: Path
) -> dict[str, Any]:
    """What predictions depend on beside the content of the files, as JSON values."""
    context = predictor.context
    data = context.config.data
    named = options.listed or options.folder
    return {
        "weights": weights_digest(weights),
        "network": network,
        "input": readable(str((named or data.root).resolve())),
        "split": None if named else data.eval_split,
        "without": list(options.without),
        "missing": context.config.evaluation.missing,
        "fit": options.fit,
        "size": predictor.short_side if options.fit == "resize" else None,
        "resize_to": options.resize_to,
        "precision": options.precision,
        "overlay_alpha": options.overlay_alpha,
    }


def _silent(text: str) -> None:
    """Of several processes one speaks."""
