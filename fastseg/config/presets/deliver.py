"""Recipes for DELIVER."""

from __future__ import annotations

from pathlib import Path

from fastseg.config.presets.robustseg import robustseg, with_b2
from fastseg.config.run import TrainConfig
from fastseg.pipelines import DataConfig


def deliver_robustseg_b0() -> TrainConfig:
    """RobustSeg (arXiv:2505.12861v1) on DELIVER with MiT-B0 at 1024 x 1024.

    ``python -m fastseg.train --preset deliver_robustseg_b0 --data.root DIR --model.weights FILE``

    Published with this recipe's teacher: 61.92 mIoU on val with all modalities. The regulariser
    RRM is off, as in the authors' later versions; ``--stages.student.losses.rrm`` turns it on.
    """
    data = DataConfig(
        dataset="deliver", root=Path("data/DELIVER"), size=1024, jitter=0.2, blur=0.2, workers=8
    )
    return robustseg("deliver_robustseg_b0", data)


def deliver_robustseg_b2() -> TrainConfig:
    """As ``deliver_robustseg_b0`` with MiT-B2, the backbone of the robustness tables."""
    return with_b2(deliver_robustseg_b0())
