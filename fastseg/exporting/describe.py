"""``preprocessing.json``: all that a program needs to know to call an exported network."""

from __future__ import annotations

import json
from typing import Any

import fastseg
from fastseg.engine.context import RunContext
from fastseg.pipelines.datasets.spec import ModalitySpec

from .deployed import PRESENT, Deployed
from .formats import LEAST_SIDE, OPSET
from .sensors import STRIDE, stored_channels

VERSION = 1
"""Version of the layout of ``preprocessing.json``."""

MISSING = {
    "drop": "its image is left out: the sensors that are present are fused",
    "zero": "its image is 0 after normalisation, and is fused like the others",
}


def describe(context: RunContext, deployed: Deployed, network: str) -> dict[str, Any]:
    """The content of ``preprocessing.json``, without the files."""
    spec, config = context.spec, context.config
    sensors = [_sensor(modality) for modality in context.modalities]
    names = [modality.name for modality in context.modalities]
    missing = config.evaluation.missing
    return {
        "version": VERSION,
        "made_by": f"fastseg {fastseg.__version__}",
        "network": network,
        "model": type(deployed.network).__name__,
        "backbone": config.backbone_of(network),
        "dataset": spec.name,
        "sensors": sensors,
        "normalisation": "inside the network: give the codes as they are decoded",
        "present": {
            "name": PRESENT,
            "dtype": "bool",
            "shape": ["batch", len(names)],
            "order": names,
            "missing": missing,
            "meaning": "false where a sensor is missing, in each sample on its own: "
            f"{MISSING[missing]}. What its image holds makes no difference then, but it has the "
            "size of the others",
            "none": f"A sample without any sensor gets the label {spec.ignore_index} everywhere",
        },
        "size": {
            "any": True,
            "least": LEAST_SIDE,
            "padding": "inside the network: at the right and bottom to multiples of "
            f"{STRIDE}, by the code of no measurement, and cut off again",
            "short_side_of_evaluation": config.data.eval_size or config.data.size,
        },
        "before": _before(context),
        "outputs": _outputs(deployed, len(spec.classes)),
        "opset": OPSET,
        "classes": list(spec.classes),
        "palette": [list(colour) for colour in spec.palette],
        "ignore_index": spec.ignore_index,
    }


def as_json(about: dict[str, Any]) -> str:
    """The text of the file."""
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _sensor(modality: ModalitySpec) -> dict[str, Any]:
    """One input; what the network computes of its codes is told, not to be done again."""
    channels = stored_channels(modality)
    return {
        "name": modality.name,
        "letter": modality.letter,
        "kind": modality.sensor,
        "dtype": str(modality.dtype),
        "shape": ["batch", "height", "width", channels],
        "layout": _layout(modality),
        "takes_channels": list(modality.channels),
        "scale": modality.scale,
        "offset": modality.offset,
        "unit": modality.unit or "fraction of the largest code",
        "mean": list(modality.mean),
        "std": list(modality.std),
        "empty": modality.empty,
    }


def _layout(modality: ModalitySpec) -> str:
    if modality.decoder == "array":
        files = [file.folder for file in modality.files]
        return f"float arrays of {' and '.join(files)}, channels one after the other"
    if modality.bits == (8, 16):
        return "red, green, blue; grey repeated; codes of 8-bit files times 257"
    return "red, green, blue; grey repeated; no alpha"


def _before(context: RunContext) -> list[str]:
    """What the loader of this reading of the data does, and the network does not."""
    spec = context.spec
    steps = [f"cut off the first {spec.skip_columns} columns"] if spec.skip_columns else []
    for modality in context.modalities:
        if modality.high_byte:
            steps.append(f"{modality.name}: take the upper byte of the 16-bit codes")
    if spec.resize:
        height, width = spec.resize
        steps.append(f"resize to {height} x {width} by PIL's bicubic rule")
    for modality in context.modalities:
        if modality.stretch:
            steps.append(
                f"{modality.name}: 255 (x - min) / (max - min) over the image, 0 if it is constant"
            )
        if modality.any_size:
            steps.append(f"{modality.name}: bring to the size of the others by nearest")
    return steps


def _outputs(deployed: Deployed, classes: int) -> list[dict[str, Any]]:
    shapes: dict[str, tuple[str, list[Any], str]] = {
        "labels": ("uint8", ["batch", "height", "width"], "the most likely class of each pixel"),
        "logits": (
            "float32",
            ["batch", classes, "ceil(height / 4)", "ceil(width / 4)"],
            "before the softmax; each covers 4 x 4 pixels",
        ),
        "probabilities": (
            "float32",
            ["batch", classes, "height", "width"],
            "softmax of the logits, brought to full size bilinearly",
        ),
    }
    return [
        {"name": name, "dtype": dtype, "shape": shape, "meaning": meaning}
        for name, (dtype, shape, meaning) in shapes.items()
        if name in deployed.outputs
    ]
