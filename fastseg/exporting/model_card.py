"""``MODEL_CARD.md``: what the exported network is for, what it scored, what to mind."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastseg
from fastseg.checkpoint.weights import read_identity
from fastseg.engine.context import RunContext
from fastseg.pipelines.faults.sensor_faults import describe as describe_faults
from fastseg.report.results import SubsetResult, mean_result, read_results

from .check import Comparison

RESULTS = "results.csv"
"""The scores of a run, beside its weights."""


def model_card(
    context: RunContext,
    about: dict[str, Any],
    weights: Path,
    command: str,
    checks: Sequence[Comparison],
    real: str,
) -> str:
    """The text of the card.

    Args:
        context: of the run of the weights.
        about: content of ``preprocessing.json``.
        weights: the weights file.
        command: that made the files.
        checks: how the files compare with the network.
        real: note on the real images of the checks.
    """
    network, config = about["network"], context.config
    parts = [
        f"# {about['network']} of {config.name}",
        f"Semantic segmentation by any of {len(about['sensors'])} sensors: "
        f"{about['model']} with {about['backbone']}, {len(about['classes'])} classes, trained on "
        f"{about['dataset']} by the method {config.method}. Some sensors may be missing, in each "
        "sample others.",
        "## Files",
        *_files(about),
        "## Sensors",
        _table(
            ("input", "letter", "dtype", "shape", "holds"),
            [
                (s["name"], s["letter"], s["dtype"], _shape(s["shape"]), s["layout"])
                for s in about["sensors"]
            ],
        ),
        f"`present` {_shape(about['present']['shape'])} bool, in this order: "
        f"{', '.join(about['present']['order'])}. It is {about['present']['meaning']}. Sensors are "
        f"missing by `{about['present']['missing']}`. {about['present']['none']}.",
        "Scaling and normalisation are inside. Any height and width of at least "
        f"{about['size']['least']} pixels; padding is inside, too. The network was scored at a "
        f"short side of {about['size']['short_side_of_evaluation']} pixels: images of another "
        "scale are better resized to it first.",
        *([f"Before: {'; '.join(about['before'])}."] if about["before"] else []),
        "## Classes",
        ", ".join(f"{i} {name}" for i, name in enumerate(about["classes"]))
        + f"; {about['ignore_index']} where no sensor is present.",
        "## Scores",
        _scores(weights, network, about["present"]["missing"], context),
        "## Agreement with the network",
        "\n".join(f"- {check}" for check in checks),
        f"Every subset of the sensors, one sample alone and batches of several; {real}.",
        "## Origin",
        "\n".join(f"- {name}: {value}" for name, value in _origin(context, weights, command)),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(about)),
        "## Licence of the weights",
        _licence(context),
    ]
    return "\n\n".join(parts) + "\n"


def _origin(context: RunContext, weights: Path, command: str) -> list[tuple[str, str]]:
    facts, run = read_identity(weights)[1], weights.parent / "config.json"
    trained = f"`python -m fastseg.train --config {run}`" if run.is_file() else "not known"
    stage, steps, seed = (facts.get(name, "not known") for name in ("stage", "steps", "seed"))
    return [
        ("exported by", f"`{command}`, fastseg {fastseg.__version__}, torch {torch.__version__}"),
        ("trained by", trained),
        ("stage", f"{stage}, steps {steps}, seed {seed}"),
        ("commit of fastseg", commit_of(Path(fastseg.__file__).parent)),
        ("faults of sensors in training", describe_faults(context.config.data.corruption)),
    ]


def _files(about: dict[str, Any]) -> list[str]:
    rows = [
        (name, file["format"], file["precision"], f"{file['bytes'] / 2**20:.1f} MiB")
        for name, file in about["files"].items()
    ]
    read = (
        f"`.onnx` is of opset {about['opset']}; `.pt2` is read by `torch.export.load`. Both hold "
        "`preprocessing.json`, which says how they are called."
    )
    return [_table(("file", "format", "precision", "size"), rows), read]


def _scores(weights: Path, network: str, missing: str, context: RunContext) -> str:
    """The table of subsets as far as the run has written one."""
    try:
        results, _ = read_results(weights.parent / RESULTS)
    except ValueError as error:
        return f"Not known: {error}."
    own = [result for result in results if result.model == network]
    if not own:
        return f"Not known: {weights.parent / RESULTS} has no rows of {network}."
    rows = [_row(result) for result in [*own, mean_result(own)]]
    split = context.config.data.eval_split
    return (
        f"On the split {split} of {context.spec.name}, sensors missing by {missing}, sensor "
        f"faults: {own[0].corruption}. In percent; a class that appears nowhere counts as 0 in "
        "mIoU (all).\n\n" + _table(("sensors", "mIoU (all)", "mIoU (present)"), rows)
    )


def _row(result: SubsetResult) -> tuple[str, str, str]:
    return result.subset, f"{100 * result.miou_all:.2f}", f"{100 * result.miou_present:.2f}"


def _limits(about: dict[str, Any]) -> list[str]:
    return [
        f"It knows scenes and sensors as in {about['dataset']}; elsewhere its labels are not to be "
        "relied on, and it does not say so.",
        "All sensors of a sample are registered: a pixel is the same place in each.",
        "The mask has to be right. A sensor that is present and wrong (black, frozen, misaligned) "
        "is believed.",
        "Scores are of whole images of the split above; they say little about rare classes and "
        "nothing about safety.",
    ]


def _licence(context: RunContext) -> str:
    encoder = context.config.model.weights
    first = (
        f"Training began with the encoder weights {encoder.name}, whose licence goes on: the "
        "published ones of the Mix Transformer (NVIDIA) allow research and evaluation alone, "
        "without commercial use."
        if encoder is not None
        else "Training began with random weights."
    )
    return (
        f"{first} The terms of the data set {context.spec.name} may bind weights that were trained "
        "on it. Nothing else is known of it here."
    )


def commit_of(folder: Path) -> str:
    """The commit of the checkout that a folder is in, with a note on changes; or why not."""
    try:
        found = [
            subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True, text=True, timeout=10, check=True,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        ]  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "not known, as it is not in a checkout"
    return found[0] + (", with changes" if found[1] else "")


def _shape(sizes: Sequence[object]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
