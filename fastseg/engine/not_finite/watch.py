"""Steps that were skipped because their gradient was not finite: told, counted, and refused.

What is refused leaves files ``not-finite-<stage>`` in the run folder, see
`fastseg.engine.not_finite.dump`; ranks above 0 write their own, since their samples are others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastseg.console import say
from fastseg.distributed.sharded_tensors import local_part
from fastseg.engine.not_finite.dump import REPEAT, write_dump
from fastseg.engine.stage_run import Session
from fastseg.errors import ConfigError
from fastseg.pipelines import Batch
from fastseg.pipelines.faults.sensor_faults import describe

_LATE = 8
"""Steps that a GPU may be behind the host when the outcome of one is read."""
_LAST = 3
"""A stage is not finished while its last so many steps were skipped."""
_KEPT = 20
"""Skipped steps that are written down."""
_NOT_TERMS = ("loss", "grad_norm", "skipped", "loss_scale")


@dataclass(frozen=True)
class SkippedStep:
    """A step without an update: its number from 1, its samples and the values of this process."""

    step: int
    sample_ids: tuple[str, ...]
    values: dict[str, float]

    def bad_terms(self) -> list[str]:
        """The loss terms that are not finite."""
        found = self.values.items()
        return [k for k, v in found if k not in _NOT_TERMS and not math.isfinite(v)]


@dataclass(frozen=True)
class _Pending:
    step: int
    sample_ids: tuple[str, ...]
    names: tuple[str, ...]
    numbers: Tensor
    event: torch.cuda.Event | None


class SkipWatch:
    """Follows the steps of a stage without making the host wait for each.

    The outcome of a step is copied beside the training and read a fixed number of steps later,
    so all processes decide alike at the same step.

    Args:
        session: the stage.
        folder: folder of the run.

    Attributes:
        total: skipped steps of this session.
        in_row: those since the last step that learnt.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self.session, self.folder = session, folder
        self.config, self.ranks = session.context.config, session.context.ranks
        self.total = 0
        self.in_row = int(session.step_fn.skipped_in_row)
        self._late = _LATE if session.context.device.type == "cuda" else 0
        self._pending: deque[_Pending] = deque()
        self._recent: deque[SkippedStep] = deque(maxlen=_KEPT)
        self._last: tuple[int, Sequence[Batch]] | None = None

    def after(self, step: int, values: dict[str, Tensor], batches: Sequence[Batch]) -> None:
        """Take in the outcome of step number ``step``, counted from 0.

        Raises:
            ConfigError: ``max_skipped`` steps in a row were skipped.
        """
        self._last = step, batches
        scalars = [self.session.step_fn.skipped_in_row, *values.values()]
        numbers, event = torch.stack([scalar.detach().float() for scalar in scalars]), None
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        ids = tuple(name for batch in batches for name in batch.sample_ids)
        self._pending.append(_Pending(step + 1, ids, tuple(values), numbers, event))
        while len(self._pending) > self._late:
            self._read(self._pending.popleft())

    def check(self, done: int) -> None:
        """Before the state after ``done`` steps is saved: refuse what is of no use; collective.

        Raises:
            ConfigError: the weights are not finite, or at the end of the stage the last steps were
                all skipped.
        """
        while self._pending:
            self._read(self._pending.popleft())
        weights = _not_finite(self.session)
        (any_rank,) = self.ranks.reduce([float(bool(weights))], "max")
        if any_rank:
            raise self._refusal(f"the weights are not finite after step {done}", done, weights)
        steps = self.session.steps
        if done == steps and self.in_row >= min(_LAST, self.config.max_skipped, steps):
            what = f"the last {self.in_row} of {steps} steps"
            raise self._refusal(f"the gradient was not finite in {what}", done)

    def _read(self, pending: _Pending) -> None:
        if pending.event is not None:
            pending.event.synchronize()
        in_row, *numbers = pending.numbers.tolist()
        self.in_row = int(in_row)
        if not self.in_row:
            return
        values = dict(zip(pending.names, numbers, strict=True))
        skipped = SkippedStep(pending.step, pending.sample_ids, values)
        self._recent.append(skipped)
        self.total += 1
        if self.total == 1 and self.ranks.is_first:
            self._warn(skipped)
        if self.in_row >= self.config.max_skipped:
            what = f"in {self.in_row} steps in a row up to step {pending.step}"
            raise self._refusal(f"the gradient was not finite {what}", pending.step)

    def _warn(self, skipped: SkippedStep) -> None:
        terms = ", ".join(skipped.bad_terms()) or "none"
        usual = "; fp16 lowers its loss scale by that" if self.config.precision == "fp16" else ""
        say(
            f"warning: {self.session.name}: step {skipped.step} is skipped, as its gradient is not "
            f"finite{usual} (loss terms that are not: {terms}; samples "
            f"{', '.join(skipped.sample_ids)}); the progress line counts such steps"
        )

    def _refusal(self, what: str, done: int, weights: Sequence[str] = ()) -> ConfigError:
        """The error, after everything that tells its cause is written down; collective."""
        name, gradients, inputs = self.session.name, dict[str, float](), list[str]()
        found: dict[str, Any] = {}
        if self._last is not None:
            step, batches = self._last
            gradients, terms = self.session.step_fn.retry(step, *batches)
            inputs = [place for batch in batches for place in _bad_images(batch)]
            found["repeated"] = {"step": step + 1, "values": terms}
        content = {
            "what": what,
            "stage": name,
            "step": done,
            "lr": self.session.setup.rate(done - 1),
            "precision": self.config.precision,
            "skipped_steps": [asdict(skipped) for skipped in self._recent],
            "images_not_finite": inputs,
            "gradients_not_finite": [k for k, v in gradients.items() if not math.isfinite(v)],
            "gradient_norms": gradients,
            "weights_not_finite": list(weights),
            **found,
        }
        file = write_dump(self.session, self.folder, content, self._last)
        again = f"python -m {REPEAT} {file} repeats the step alone"
        advice = "\n  ".join(self._advice(inputs))
        return ConfigError(
            f"{name}: {what}; nothing is saved over the last good state, and {file} has the "
            f"details.\n  {advice}\n  {again}",
            help="gradients-that-are-not-finite",
        )

    def _advice(self, inputs: Sequence[str]) -> list[str]:
        """Lines that say what was found and what may help, the likeliest first."""
        config, name = self.config, self.session.name
        lines = [f"Images that are not finite: {', '.join(inputs)}: mend them"] if inputs else []
        if terms := self._bad_terms():
            weights = ", ".join(f"--stages.{name}.losses.{term}" for term in terms)
            lines.append(f"Loss terms that are not finite: {', '.join(terms)}; lower {weights}")
        elif self._recent:
            lines.append("All loss terms were finite, but not their weighted sum or its gradient")
        if self._recent:
            lines.append(f"Samples of the last such step: {', '.join(self._recent[-1].sample_ids)}")
        if config.precision != "fp32":
            other = "bf16 or fp32" if config.precision == "fp16" else "fp32"
            lines.append(f"The precision is {config.precision}: try --precision {other}")
        if config.data.corruption.active:
            faults = describe(config.data.corruption)
            lines.append(f"--data.corruption.* is active ({faults}): try without it")
        lr = self.session.setup.stage.lr
        return [*lines, f"Lower --stages.{name}.lr, which is {lr:g}, or a loss weight"]

    def _bad_terms(self) -> list[str]:
        """The loss terms that were not finite on any process in the last skipped step."""
        terms = list(self.session.setup.stage.losses.active())
        bad = self._recent[-1].bad_terms() if self._recent else []
        flags = self.ranks.reduce([float(term in bad) for term in terms], "max")
        return [term for term, flag in zip(terms, flags, strict=True) if flag]


def _not_finite(session: Session) -> list[str]:
    """Names of the weights, statistics and averages of this process that are not finite."""
    tensors = dict(session.module.state_dict())
    if session.average is not None:
        tensors |= {f"average of {k}": v for k, v in session.average.own().items()}
    parts = {k: local_part(v) for k, v in tensors.items() if v.is_floating_point()}
    flags = torch.stack([part.isfinite().all() for part in parts.values()]).tolist()
    return [name for name, good in zip(parts, flags, strict=True) if not good]


def _bad_images(batch: Batch) -> list[str]:
    """``sample (modality)`` for every image that is not finite."""
    good = batch.images.isfinite().flatten(2).all(2).tolist()
    return [
        f"{sample} ({modality})"
        for modality, row in zip(batch.modalities, good, strict=True)
        for sample, fine in zip(batch.sample_ids, row, strict=True)
        if not fine
    ]
