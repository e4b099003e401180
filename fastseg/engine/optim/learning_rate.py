"""The learning rate of every step: linear warm-up, then polynomial decay."""

from __future__ import annotations

from fastseg.methods.stage import Stage


def learning_rate(stage: Stage, step: int, steps_per_epoch: int) -> float:
    """Warm-up and polynomial decay as published.

    With warm-up length T_w = warmup_epochs and T_max = epochs + 1, both in steps::

        lr(t) = lr0 (r + (1 - r) t / T_w)                       t < T_w
        lr(t) = lr0 (1 - (t - T_w) / (T_max - T_w)) ^ power     otherwise

    T_max lies one epoch behind the end, so the last step still learns. A warm-up longer than half
    of the stage is cut to half of it, so that short runs reach their learning rate.

    Source: released code of arXiv:2505.12861v1, ``semseg/schedulers.py`` (warm-up poly).
    """
    total = stage.num_steps(steps_per_epoch)
    warmup = min(round(stage.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return stage.lr * (stage.warmup_ratio + (1 - stage.warmup_ratio) * step / warmup)
    progress = (step - warmup) / (total + min(steps_per_epoch, total) - warmup)
    return float(stage.lr * max(0.0, 1 - progress) ** stage.power)
