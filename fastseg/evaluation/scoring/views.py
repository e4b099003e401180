"""Views of a batch whose answers are averaged: scales, mirror images, sliding windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastseg import kernels
from fastseg.pipelines.tools.settings import Natural, Range, check_fields

_STRIDE = 32
Scale = Annotated[float, Range(0.1, 8)]
LogitsOf = Callable[[Tensor], Iterator[Tensor]]
"""From images ``[M, B, 3, H, W]`` to logits ``[B, K, h, w]`` of one case after the other."""


@dataclass(frozen=True)
class ViewsConfig:
    """Views of every sample; by default the whole image as it is."""

    scales: tuple[Scale, ...] = (1.0,)
    """Sizes of the images as shares of --size, each rounded up to multiples of 32; the published
    multi-scale test has 0.5 0.75 1 1.25 1.5 1.75."""
    flip: bool = False
    """Also score the mirror image."""
    window: Annotated[int, Range(0, 2**15, multiple=32)] = 0
    """Side of a sliding window in pixels, a multiple of 32; 0: whole images."""
    stride: Natural = 0
    """Pixels between two windows, at most the window; 0: three quarters of it, as SegFormer."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.scales:
            raise ValueError("scales must be at least one number, such as 1.0")
        if self.stride > self.window:
            raise ValueError(
                f"stride must be at most the window of {self.window} pixels, got {self.stride}: "
                "pixels between two windows would have no score"
            )

    @property
    def active(self) -> bool:
        """True if anything but the whole image is scored."""
        return self != ViewsConfig()

    def __str__(self) -> str:
        parts = [f"scales {' '.join(f'{scale:g}' for scale in self.scales)}"]
        parts += ["with mirror images"] * self.flip
        if self.window:
            parts.append(f"windows of {self.window} every {self.step} pixels")
        return ", ".join(parts)

    @property
    def step(self) -> int:
        """Pixels between two windows."""
        return self.stride or max(1, self.window * 3 // 4)


def predictions_of(
    logits_of: LogitsOf, images: Tensor, size: tuple[int, int], views: ViewsConfig
) -> Iterator[Tensor]:
    """Classes ``[B, H, W]`` uint8 of one case after the other.

    Softmax probabilities are summed over scales and mirror images, logits averaged over windows;
    every sample by itself, so that the batch plays no part. Rule and scales are those of the
    DELIVER repository (``tools/val_mm.py``); images change size bilinearly with aligned corners, as
    there, and logits with half-pixel centres, as everywhere here.

    Args:
        logits_of: function that scores images.
        images: ``[M, B, 3, H', W']``, normalised.
        size: ``(H, W)`` of the labels.
        views: what is averaged.
    """
    if not views.active:
        for logits in logits_of(images):
            yield kernels.upsample_argmax(logits, size)
        return
    # all views go side by side, so that each encodes its images once for all cases
    streams = [_view(logits_of, images, s, m, views) for s, m in _kinds(views)]
    for parts in zip(*streams, strict=True):
        total = sum(_upsampled(part.float(), size).softmax(1) for part in parts)
        assert isinstance(total, Tensor)
        yield total.argmax(1).to(torch.uint8)


def _kinds(views: ViewsConfig) -> list[tuple[float, bool]]:
    """Scale and mirror of each view."""
    mirrors = (False, True) if views.flip else (False,)
    return [(scale, mirror) for scale in views.scales for mirror in mirrors]


def _view(
    logits_of: LogitsOf, images: Tensor, scale: float, mirror: bool, views: ViewsConfig
) -> Iterator[Tensor]:
    """Logits of one view, turned back where it is a mirror image."""
    images = scaled(images, scale)
    images = images.flip(-1) if mirror else images
    stream = in_windows(logits_of, images, views.window, views.step) if views.window else None
    for logits in stream or logits_of(images):
        yield logits.flip(-1) if mirror else logits


def scaled(images: Tensor, scale: float) -> Tensor:
    """``[M, B, 3, H, W]`` in another size, whose sides are rounded up to multiples of 32."""
    old = images.shape[-2:]
    new = [-(-round(side * scale) // _STRIDE) * _STRIDE for side in old]
    if list(old) == new:
        return images
    flat = interpolate(images.flatten(0, 1), size=new, mode="bilinear", align_corners=True)
    return flat.view(*images.shape[:3], *new)


def in_windows(logits_of: LogitsOf, images: Tensor, window: int, step: int) -> Iterator[Tensor]:
    """Logits ``[B, K, H, W]``: the mean over the windows that a pixel is in.

    The last window of an axis ends with the image; a shorter image is one window.
    """
    height, width = images.shape[-2:]
    places = [
        (top, left)
        for top in _starts(height, window, step)
        for left in _starts(width, window, step)
    ]
    tall, wide = min(window, height), min(window, width)
    streams = [logits_of(images[..., y : y + tall, x : x + wide]) for y, x in places]
    times = images.new_zeros((height, width), dtype=torch.float32)
    for y, x in places:
        times[y : y + tall, x : x + wide] += 1
    for parts in zip(*streams, strict=True):
        batch, classes = parts[0].shape[:2]
        total = times.new_zeros((batch, classes, height, width))
        for (y, x), part in zip(places, parts, strict=True):
            total[..., y : y + tall, x : x + wide] += _upsampled(part.float(), (tall, wide))
        yield total / times


def _starts(length: int, window: int, step: int) -> list[int]:
    """First pixels of the windows along an axis."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


def _upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(logits, size=size, mode="bilinear", align_corners=False)
