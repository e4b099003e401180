"""What the network itself says of some images, by the parts that evaluation uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastseg.engine.context import RunContext
from fastseg.evaluation.subsets import run_subsets
from fastseg.kernels.common.switch import force_reference
from fastseg.kernels.reference import upsample_argmax
from fastseg.models import Segmenter
from fastseg.pipelines import Batch, CorruptionConfig, DataError, build_loader
from fastseg.pipelines.transform.normalise import Normaliser

from .sensors import Arrays, as_loaded, as_stored, random_images

SAMPLES = 3
"""Samples of a case: its largest batch."""
SIZES = ((64, 96), (71, 105))
"""Height and width of random images: multiples of 32, and none."""
WINDOW = 200
"""Height and width of real images at most, so that all subsets of them take seconds."""


@dataclass(frozen=True)
class Case:
    """Images of `SAMPLES` samples, and what the network says of them with every subset.

    Attributes:
        name: what they are.
        images: ``[N, H, W, C]`` per sensor, as decoded.
        masks: ``[S, M]`` bool, the subsets.
        logits: ``[S, N, K, h, w]`` float32, cut to ceil(H / 4) and ceil(W / 4).
        labels: ``[S, N, H, W]`` uint8.
    """

    name: str
    images: Arrays
    masks: NDArray[np.bool_]
    logits: NDArray[np.float32]
    labels: NDArray[np.uint8]


def make_cases(context: RunContext, network: Segmenter) -> tuple[list[Case], str]:
    """Cases of random and of real images, and a note on the real ones."""
    found = {
        f"random {height} x {width}": random_images(context.modalities, SAMPLES, height, width, i)
        for i, (height, width) in enumerate(SIZES)
    }
    data = context.config.data
    where = f"split {data.eval_split} of {context.spec.name} at {data.root}"
    try:
        real = real_images(context)
        height, width = next(iter(real.values())).shape[1:3]
        found[f"real {height} x {width}"] = real
        note = f"real images: {where}"
    except DataError as error:
        note = f"no real images, as {where} cannot be used: {error}"
    return [_case(context, network, name, images) for name, images in found.items()], note


def real_images(context: RunContext) -> dict[str, NDArray[Any]]:
    """The upper left of the first samples of the evaluation split, as decoded.

    Raises:
        DataError: the data are not there or cannot be used.
    """
    data = replace(context.config.data, eval_corruption=CorruptionConfig())
    loader = build_loader(data, train=False)
    try:
        batches: list[Batch] = list(islice(loader.batches(), SAMPLES))
    finally:
        loader.close()
    batches = [batches[i % len(batches)] for i in range(SAMPLES)]
    side = [min(WINDOW, *(batch.classes.shape[axis] for batch in batches)) for axis in (1, 2)]
    images = {}
    for position, modality in enumerate(context.modalities):
        codes = [batch.codes[position].numpy()[..., : side[0], : side[1]] for batch in batches]
        images[modality.name] = as_stored(np.concatenate(codes), modality)
    return images


def _case(context: RunContext, network: Segmenter, name: str, images: Arrays) -> Case:
    subsets = [subset.positions for subset in run_subsets(context)]
    height, width = next(iter(images.values())).shape[1:3]
    codes = [as_loaded(images[m.name], m) for m in context.modalities]
    padded = codes[0].shape[2:]
    with torch.no_grad(), force_reference():
        normalised = Normaliser(context.modalities)(codes)
        logits = list(
            network.logits_of_subsets(normalised, subsets, context.config.evaluation.missing)
        )
        labels = [upsample_argmax(x, padded)[:, :height, :width] for x in logits]
    rows, columns = -(-height // 4), -(-width // 4)
    return Case(
        name,
        images,
        _masks(subsets, len(codes)),
        torch.stack([x[..., :rows, :columns] for x in logits]).numpy(),
        torch.stack(labels).numpy(),
    )


def _masks(subsets: Sequence[Sequence[int]], count: int) -> NDArray[np.bool_]:
    masks = np.zeros((len(subsets), count), np.bool_)
    for row, positions in zip(masks, subsets, strict=True):
        row[list(positions)] = True
    return masks
