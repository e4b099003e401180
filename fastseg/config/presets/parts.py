"""Parts of which recipes on real data are made: what a data set brings, and what a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fastseg.config.run import TrainConfig
from fastseg.config.sections import ModelConfig
from fastseg.methods.base import MethodOptions
from fastseg.methods.stage import LossWeights, Stage
from fastseg.models.foundation.sizes import NAMES as FOUNDATIONS
from fastseg.models.registry import EMBED_DIM, EMBED_DIMS
from fastseg.pipelines import DataConfig

Stages = dict[str, Stage]

# of a stage at 1024 px with four sensors, for one image: 20 ms for two images with MiT-B0 by
# counts of bytes and operations; others by the ratio of the operations of both networks
_MS_PER_IMAGE = {"b0": 10.0, "b2": 26.0, "cmnext_b2": 13.0}
# two thirds of them: a frozen backbone has no gradients of weights
_MS_PER_IMAGE |= {"dinov2_small": 34.0, "dinov2_base": 90.0}

_TITLES = {"b0": "MiT-B0", "b2": "MiT-B2", "cmnext_b2": "CMNeXt-B2"}
_TITLES |= {"dinov2_small": "a frozen DINOv2-S", "dinov2_base": "a frozen DINOv2-B"}
_FACTS = {
    "cmnext_b2": " CMNeXt (arXiv:2303.01480) was trained on four GPUs with two images each, from "
    "ImageNet weights of MiT-B2 in its RGB branch, with a head of 512 channels."
} | dict.fromkeys(
    FOUNDATIONS,
    " In place of an encoder with ImageNet weights: DINOv2 (arXiv:2304.07193) from a folder of "
    "yours, with a LoRA adapter (arXiv:2106.09685) of rank 8 for each sensor and a feature pyramid "
    "as ViTDet's (arXiv:2203.16527). In place of the rate above: 2e-4 for adapters, pyramid and "
    "head, a choice of ours that is not tuned. No numbers of such a model with missing sensors are "
    "published.",
)
_FOUNDATION_RATE = 2e-4


@dataclass(frozen=True)
class DataRecipe:
    """What a data set brings to a recipe.

    Attributes:
        name: first part of the recipe's name.
        title: for people, with sizes.
        data: reading, augmentation and batches.
        facts: sources of these numbers, sentences.
        lr: learning rate.
        epochs: length of a stage in which a network learns on its own.
        images: training images of an epoch.
        cost: cost of an image beside one of 1024 x 1024 and four sensors.
    """

    name: str
    title: str
    data: DataConfig
    facts: str
    lr: float
    epochs: float
    images: int
    cost: float


@dataclass(frozen=True)
class MethodRecipe:
    """What a method brings to a recipe.

    Attributes:
        name: second part of the recipe's name.
        title: for people, with its source.
        method: name of the method, see `fastseg.methods`.
        losses: type of the method's options.
        stages: stages, made from a first one that trains on complete inputs for the whole length.
        facts: sources of weights and lengths, sentences.
        published: published results by data set and backbone, such as ``deliver_b0``.
        options: options of the method that differ from their defaults.
        small: function that fits the stages to the synthetic demo: weights that differ there.
        small_options: options that differ there.
        fusion: fusion of the model.
        teacher_losses: weights of a first stage on complete inputs; the defaults by default.
        studied: whether it is part of the comparison of methods.
    """

    name: str
    title: str
    method: str
    losses: type[MethodOptions]
    weights: type[LossWeights]
    stages: Callable[[Stage], Stages]
    facts: str
    published: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    small: Callable[[Stages], Stages] = field(default=lambda stages: stages)
    small_options: Mapping[str, object] = field(default_factory=dict)
    fusion: Literal["mean", "mff"] = "mean"
    teacher_losses: LossWeights | None = None
    studied: bool = True


def compose(
    data: DataRecipe, method: MethodRecipe, backbone: str, variant: str = ""
) -> Callable[[], TrainConfig]:
    """The recipe of a method on a data set, with its name and docstring.

    Args:
        data: what the data set brings.
        method: what the method brings.
        backbone: ``b0`` or ``b2`` of M-SegFormer; else the name of a backbone.
        variant: last part of the name, if there are several readings of the data.
    """
    name = "_".join(filter(None, (data.name, method.name, backbone, variant)))
    model = f"mit_{backbone}" if backbone.startswith("b") else backbone

    def recipe() -> TrainConfig:
        first = Stage(
            start="encoder",
            losses=method.weights(),
            epochs=data.epochs,
            lr=_FOUNDATION_RATE if backbone in FOUNDATIONS else data.lr,
            warmup_epochs=10,
        )
        return TrainConfig(
            name=name,
            seed=3407,
            precision="auto",
            data=data.data,
            model=ModelConfig(
                backbone=model,
                embed_dim=EMBED_DIMS.get(model, EMBED_DIM),
                fusion=method.fusion,
            ),
            method=method.method,
            stages=method.stages(first),
            losses=method.losses(**method.options),
        )

    recipe.__name__ = recipe.__qualname__ = name
    recipe.__doc__ = describe(data, method, backbone, recipe())
    return recipe


def describe(data: DataRecipe, method: MethodRecipe, backbone: str, config: TrainConfig) -> str:
    """The docstring of a recipe: command, sources of its numbers, published result, GPU-hours."""
    name = config.name
    encoder = "--model.foundation DIR" if backbone in FOUNDATIONS else "--model.weights FILE"
    files = f"--data.root DIR {encoder}"
    epochs = sum(stage.epochs for stage in config.stages.values())
    hours = epochs * data.images * data.cost * _MS_PER_IMAGE[backbone] / 3.6e6
    published = method.published.get(f"{data.name}_{backbone}", "no result of this combination")
    return (
        f"{method.title} on {data.title} with {_TITLES[backbone]}.\n\n"
        f"``python -m fastseg.train --preset {name} {files}``\n\n"
        f"{method.facts} {data.facts}{_FACTS.get(backbone, '')}\n\n"
        f"Published: {published}.\n\n"
        f"Estimate: {_rounded(hours)} to {_rounded(3 * hours)} hours of one H100, by counts of "
        "bytes and operations; no GPU has run it."
    )


def _rounded(hours: float) -> str:
    return f"{hours:.1g}" if hours < 1 else f"{hours:.0f}"
