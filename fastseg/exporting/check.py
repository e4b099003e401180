"""An exported file held against the network: every subset, alone and beside others in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastseg.errors import ConfigError

from .formats import Runner
from .references import SAMPLES, Case


@dataclass(frozen=True)
class Tolerance:
    """How far a file may be from the network.

    Attributes:
        error: of logits, as a share of the largest one of the case.
        labels: share of the pixels whose label has to be the same.
        remedy: what to do about a file that is further off.
        beyond: share of the logits that may be further off.
    """

    error: float
    labels: float
    remedy: str
    beyond: float = 0

    def selecting(self, beyond: float) -> Tolerance:
        """The same for a network whose logits may jump."""
        return replace(self, beyond=beyond)


FP32 = Tolerance(
    1e-4, 0.999, "please report it, with the versions that python -m fastseg.doctor prints"
)
FP16 = Tolerance(3e-2, 0.95, "this network needs more than fp16: leave out --precision fp16")
SELECTING = 5e-3
"""`Tolerance.beyond` of a network that selects between candidates: where they are as good as equal,
the rounding decides, and the other one is another number."""


@dataclass(frozen=True)
class Comparison:
    """One file on one case.

    Attributes:
        file: name of the file.
        case: name of the case.
        samples: those that were compared, each with a subset.
        error: largest difference of a logit.
        largest: largest absolute logit of the network.
        beyond: share of the logits that are further off than the tolerance.
        equal: share of the pixels with the same label.
    """

    file: str
    case: str
    samples: int
    error: float
    largest: float
    beyond: float
    equal: float

    def passes(self, tolerance: Tolerance) -> bool:
        """True if the file may be used; a NaN is never close."""
        close = self.error <= tolerance.error * self.largest or (
            np.isfinite(self.error) and self.beyond <= tolerance.beyond
        )
        return bool(close and self.equal >= tolerance.labels)

    def __str__(self) -> str:
        beyond = f", {100 * self.beyond:.3g} % of them beyond the limit" if self.beyond else ""
        return (
            f"{self.file}, {self.case}, {self.samples} samples: largest error of logits "
            f"{self.error:.2g} of {self.largest:.3g}{beyond}, equal labels {100 * self.equal:.4f} %"
        )


def compare(
    file: str, run: Runner, cases: Sequence[Case], tolerance: Tolerance
) -> list[Comparison]:
    """Run a file on all cases.

    Raises:
        ConfigError: it is not the network; the message has the first case where it is not.
    """
    found = []
    for case in cases:
        result = _compare(file, run, case, tolerance)
        if not result.passes(tolerance):
            raise ConfigError(
                f"{result}: this is not what the network says (limits: {tolerance.error:g} of the "
                f"largest logit, {100 * tolerance.labels:g} % of the labels); nothing is written; "
                f"{tolerance.remedy}"
            )
        found.append(result)
    return found


def _compare(file: str, run: Runner, case: Case, tolerance: Tolerance) -> Comparison:
    largest = float(np.abs(case.logits).max())
    error, beyond, logits, equal, pixels, samples = 0.0, 0, 0, 0, 0, 0
    for chosen in _batches(len(case.masks)):
        rows = np.arange(len(chosen))
        images = {name: image[: len(rows)] for name, image in case.images.items()}
        out = run(images, case.masks[chosen])
        wanted, labels = case.logits[chosen, rows], case.labels[chosen, rows]
        if out["logits"].shape != wanted.shape or out["labels"].shape != labels.shape:
            shapes = f"{out['logits'].shape} and {out['labels'].shape}"
            raise ConfigError(
                f"{file}, {case.name}: outputs of shapes {shapes}, expected {wanted.shape} and "
                f"{labels.shape}; nothing is written; please report it"
            )
        off = np.abs(out["logits"].astype(np.float64) - wanted)
        # the maximum of Python would lose a NaN
        error = float(np.maximum(error, off.max()))
        beyond += int((~(off <= tolerance.error * largest)).sum())
        logits += off.size
        equal += int((out["labels"] == labels).sum())
        pixels += labels.size
        samples += len(rows)
    return Comparison(file, case.name, samples, error, largest, beyond / logits, equal / pixels)


def _batches(subsets: int) -> Iterator[list[int]]:
    """The subsets of the samples of each batch: one alone, then several in a batch."""
    for subset in range(subsets):
        yield [subset]
    for first in range(0, subsets, SAMPLES):
        yield [(first + i) % subsets for i in range(SAMPLES)]
