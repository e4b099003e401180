"""Recipes for MUSES."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastseg.config.presets.robustseg import robustseg, with_b2
from fastseg.config.run import TrainConfig
from fastseg.pipelines import DataConfig


def muses_robustseg_b0() -> TrainConfig:
    """RobustSeg on MUSES with MiT-B0: crops of 1024 x 1024, physical units, 255 ignored.

    ``python -m fastseg.train --preset muses_robustseg_b0 --data.root DIR --model.weights FILE``

    Evaluation is on whole images with a short side of 1024. The learning rate is the one published
    for MUSES with this backbone (AnySeg, arXiv:2411.17141), the augmentation is DELIVER's. No
    published number belongs to this reading: see ``muses_robustseg_b0_published``.
    """
    data = DataConfig(
        dataset="muses",
        root=Path("data/MUSES"),
        size=1024,
        eval_batch_size=2,
        jitter=0.2,
        blur=0.2,
        workers=8,
    )
    return robustseg("muses_robustseg_b0", data, lr=1.2e-4)


def muses_robustseg_b2() -> TrainConfig:
    """As ``muses_robustseg_b0`` with MiT-B2, the backbone of the robustness tables."""
    return with_b2(muses_robustseg_b0())


def muses_robustseg_b0_published() -> TrainConfig:
    """MUSES as the released loader feeds it, to compare with published tables.

    ``python -m fastseg.train --preset muses_robustseg_b0_published --data.root DIR ...``

    High bytes, no whitening, no augmentation, images squashed to 1024 x 1024, and void trained and
    scored as road (``muses-robustseg``). Published for AnySeg on the like: mean 40.23 of 7 subsets.
    """
    config = muses_robustseg_b0()
    data = replace(
        config.data, dataset="muses-robustseg", scale=(1.0, 1.0), flip=0, jitter=0, blur=0
    )
    return replace(config, name="muses_robustseg_b0_published", data=data)
