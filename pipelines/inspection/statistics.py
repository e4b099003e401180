"""Mean and deviation of every modality and pixels of every class, the same on every machine.

Codes are summed as integers, which is exact. Float values are summed by ``math.fsum``, which rounds
once, per image and then over all images. Neither depends on order or number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from ..datasets.spec import ModalitySpec
from ..datasets.split_files import SplitFiles
from ..decode.by_spec import Array, decode_modality
from ..loaders.samples import read_label
from ..synthetic import shown_name
from ..tools.process_pool import each
from ..tools.progress import Progress


@dataclass(frozen=True)
class Sums:
    """Sums over the pixels of one modality; three numbers are one per channel."""

    pixels: int
    filled: int
    """Pixels with a measurement: a code other than the empty one in any channel."""
    total: tuple[float, ...]
    squares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class SampleSums:
    """One sample: its modalities, in order, and its pixels per train id 0..255."""

    modalities: tuple[Sums, ...]
    labels: tuple[int, ...]


def measure(files: SplitFiles, workers: int = 0, progress: bool = True) -> dict[str, Any]:
    """Statistics of a split, as a JSON object.

    Per modality and channel: mean, std, min and max of values (code * scale + offset), over all
    pixels, those without a measurement included; and the share of pixels with one (``filled``).
    A spec's ``mean`` and ``std`` are of the same kind. Images are measured as stored, without the
    columns that the spec cuts off.

    Args:
        files: the split.
        workers: processes; 0 for one per CPU.
        progress: show a bar.

    Raises:
        DataError: a file cannot be used.
    """
    look = partial(measure_sample, replace(files, sample_ids=()))
    samples: list[SampleSums] = []
    title = f"measuring {shown_name(files.spec.name, files.root)}"
    with Progress(title, len(files), shown=progress, unit="sample") as shown:
        for sample in each(look, files.sample_ids, workers):
            samples.append(sample)
            shown.advance()
    labels = [sum(column) for column in zip(*(s.labels for s in samples), strict=True)]
    return {
        "dataset": files.spec.name,
        "split": files.split,
        "samples": len(files),
        "fingerprint": files.fingerprint,
        "modalities": {
            modality.name: _describe(modality, [sample.modalities[m] for sample in samples])
            for m, modality in enumerate(files.modalities)
        },
        "classes": dict(zip(files.spec.classes, labels, strict=False)),
        "ignored": labels[files.spec.ignore_index],
        "class_weights": class_weights(labels[: files.spec.num_classes]),
    }


def class_weights(pixels: Sequence[int]) -> list[float]:
    """Weights that let rare classes count more, to four digits.

        w_k = 1 / log(1.02 + p_k) / c,   p_k = share of the labelled pixels,  c so that the mean of
        the weights over these pixels is 1

    so the loss keeps its size, and with it the number of pixels that count as hard.

    Source: ENet, arXiv:1606.02147, without c.
    """
    total = max(sum(pixels), 1)
    plain = [1 / math.log(1.02 + count / total) for count in pixels]
    mean = sum(w * count for w, count in zip(plain, pixels, strict=True)) / total or 1.0
    return [float(f"{weight / mean:.4g}") for weight in plain]


def measure_sample(files: SplitFiles, sample_id: str) -> SampleSums:
    """The sums of one sample of ``files``."""
    files = replace(files, sample_ids=(sample_id,))
    label = read_label(files, 0)
    return SampleSums(
        tuple(
            _sums(decode_modality(files.paths(0, m.files), files.spec, m), m)
            for m in files.modalities
        ),
        tuple(np.bincount(label.ravel(), minlength=256).tolist()),
    )


def _sums(image: Array, modality: ModalitySpec) -> Sums:
    planes = image.reshape(3, -1)
    if image.dtype.kind == "u":
        codes = planes.astype(np.int64)
        total, squares = codes.sum(axis=1).tolist(), (codes**2).sum(axis=1).tolist()
    else:
        # the square of a float32 is exact in double precision
        values = planes.astype(np.float64)
        total = [math.fsum(plane.tolist()) for plane in values]
        squares = [math.fsum(plane.tolist()) for plane in values**2]
    return Sums(
        pixels=planes.shape[1],
        filled=int((planes != modality.empty).any(axis=0).sum()),
        total=tuple(total),
        squares=tuple(squares),
        low=tuple(planes.min(axis=1).tolist()),
        high=tuple(planes.max(axis=1).tolist()),
    )


def _describe(modality: ModalitySpec, samples: Sequence[Sums]) -> dict[str, Any]:
    pixels = sum(sample.pixels for sample in samples)
    exact = modality.dtype.kind == "u"

    def added(rows: Sequence[tuple[float, ...]]) -> list[Fraction]:
        add = sum if exact else math.fsum
        return [Fraction(add(column)) for column in zip(*rows, strict=True)]

    means = [total / pixels for total in added([s.total for s in samples])]
    squares = [total / pixels for total in added([s.squares for s in samples])]
    variances = [square - mean**2 for square, mean in zip(squares, means, strict=True)]
    lows = [min(column) for column in zip(*(s.low for s in samples), strict=True)]
    highs = [max(column) for column in zip(*(s.high for s in samples), strict=True)]

    def values(codes: Sequence[Fraction | float]) -> list[float]:
        return [float(code) * modality.scale + modality.offset for code in codes]

    return {
        "unit": modality.unit,
        "pixels": pixels,
        "filled": sum(sample.filled for sample in samples) / pixels,
        "mean": values(means),
        # rounding of float sums may leave a tiny negative variance of a constant
        "std": [
            math.sqrt(max(variance, Fraction(0))) * abs(modality.scale) for variance in variances
        ],
        "min": values(lows),
        "max": values(highs),
    }
