"""Codes of a batch to network input, with the noise protocol where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from ..config import NOISE
from ..faults.noise import add_noise
from ..faults.sensor_faults import may_hit, stream_key
from ..transform.normalise import Normaliser, stacked
from .plan import Plan


def noisy(
    codes: Sequence[Tensor], plan: Plan, step: int, normalise: Normaliser
) -> tuple[Tensor, ...]:
    """The normalised images of a step with their noise: per modality ``[B, 3, H, W]`` float32.

    Random words are drawn on the host, so that the noise does not depend on the device; images come
    back to where their codes are.
    """
    epoch, indices = plan.order.at(step)
    density, sigma = NOISE[plan.corruption.noise]
    images = normalise([code.cpu() for code in codes])
    for modality, image in zip(plan.files.modalities, images, strict=True):
        if not may_hit(plan.corruption, modality):
            continue
        for index, one in zip(indices, image, strict=True):
            key = stream_key(plan.corruption, plan.seed, epoch, plan.files, index, modality)
            add_noise(one.numpy(), density, 0 if modality.sensor == "event" else sigma, key)
    return tuple(image.to(code.device) for image, code in zip(images, codes, strict=True))


def finisher(plan: Plan) -> Callable[..., Tensor]:
    """Function from the codes of a batch to network input: images with noise are that already."""
    if plan.corruption.noise != "none":
        return partial(stacked, layout=plan.config.layout)
    return Normaliser(plan.files.modalities, plan.config.layout)
