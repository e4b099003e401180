"""The learning rate of every step: linear warm-up and a decay, or one cycle."""

from __future__ import annotations

import math

from fastseg.methods.stage import Stage

# those of torch's OneCycleLR
_RISE, _FIRST, _LAST = 0.3, 1 / 25, 1 / 25e4


def learning_rate(stage: Stage, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step by the schedule of its stage.

    ``poly`` and ``cosine`` begin with a linear warm-up. With its length T_w = warmup_epochs and
    T_max = epochs + 1, both in steps, and ``x = (t - T_w) / (T_max - T_w)``::

        lr(t) = lr0 (r + (1 - r) t / T_w)              t < T_w
        lr(t) = lr0 (1 - x) ^ power                    otherwise, poly
        lr(t) = lr0 (1 + cos(pi x)) / 2                otherwise, cosine

    T_max lies one epoch behind the end, so the last step still learns. A warm-up longer than half
    of the stage is cut to half of it, so that short runs reach their learning rate.

    ``one_cycle`` rises from lr0 / 25 to lr0 over the first 30 percent of the steps and falls to
    lr0 / 250000 at the last one, both as half a cosine; the settings of the warm-up do not count.

    Sources: released code of arXiv:2505.12861v1, ``semseg/schedulers.py`` (warm-up poly);
    arXiv:1608.03983 (cosine); arXiv:1708.07120 with the numbers of torch's ``OneCycleLR``.
    """
    total = stage.num_steps(steps_per_epoch)
    if stage.schedule == "one_cycle":
        return _one_cycle(stage.lr, step, total)
    warmup = min(round(stage.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return stage.lr * (stage.warmup_ratio + (1 - stage.warmup_ratio) * step / warmup)
    progress = (step - warmup) / (total + min(steps_per_epoch, total) - warmup)
    if stage.schedule == "cosine":
        return _half_cosine(stage.lr, 0.0, progress)
    return float(stage.lr * max(0.0, 1 - progress) ** stage.power)


def _one_cycle(lr: float, step: int, total: int) -> float:
    """One cycle over ``total`` steps, whose first has the number 0."""
    peak = _RISE * total - 1
    if step < peak:
        return _half_cosine(lr * _FIRST, lr, step / peak)
    return _half_cosine(lr, lr * _LAST, (step - peak) / max(1, total - 1 - peak))


def _half_cosine(first: float, last: float, progress: float) -> float:
    """From ``first`` at 0 to ``last`` at 1 without a corner at either."""
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
