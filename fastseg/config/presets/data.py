"""Data of the recipes: DELIVER, MUSES and MCubeS as published work reads and augments them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastseg.config.presets.parts import DataRecipe
from fastseg.pipelines import DataConfig

DELIVER = DataRecipe(
    name="deliver",
    title="DELIVER at 1024 x 1024",
    data=DataConfig(
        dataset="deliver", root=Path("data/DELIVER"), size=1024, jitter=0.2, blur=0.2, workers=8
    ),
    facts="Augmentation, rate (6e-5, warm-up of 10 epochs, power 0.9) and 200 epochs are those of "
    "the released RobustSeg code; scores are on val, as published ones are.",
    lr=6e-5,
    epochs=200,
    images=3983,
    cost=1.0,
)

MUSES = DataRecipe(
    name="muses",
    title="MUSES at 1024 x 1024, in physical units, 255 ignored",
    data=DataConfig(
        dataset="muses",
        root=Path("data/MUSES"),
        size=1024,
        eval_batch_size=2,
        jitter=0.2,
        blur=0.2,
        workers=8,
    ),
    facts="The rate of 1.2e-4 is the one published for MUSES with MiT-B0 (AnySeg, "
    "arXiv:2411.17141), the augmentation is DELIVER's; evaluation is on whole images with a short "
    "side of 1024. Published numbers belong to another reading: see the recipe whose name ends in "
    "published.",
    lr=1.2e-4,
    epochs=200,
    images=1500,
    cost=0.75,
)

MUSES_PUBLISHED = replace(
    MUSES,
    title="MUSES as the released loader feeds it",
    data=replace(MUSES.data, dataset="muses-robustseg", scale=(1.0, 1.0), flip=0, jitter=0, blur=0),
    facts="High bytes, no whitening, no augmentation, images squashed to 1024 x 1024, and void "
    "trained and scored as road (``muses-robustseg``), to compare with published tables.",
)

MCUBES = DataRecipe(
    name="mcubes",
    title="MCubeS, crops of 512 x 512 and evaluation at 1024",
    data=DataConfig(
        dataset="mcubes",
        root=Path("data/MCubeS"),
        eval_split="test",
        size=512,
        eval_size=1024,
        batch_size=4,
        eval_batch_size=2,
        blur=0.5,
        blur_sigma=(0.0, 1.0),
        blur_window=0,
        blur_place="crop",
        workers=8,
    ),
    facts="Batch, 500 epochs and augmentation are CMNeXt's (arXiv:2303.01480), with blur of the "
    "crops of both cameras. Scores are on the list test, as published; but the published ones are "
    "of the best epoch on it (CMNeXt, all modalities: 36.16 with MiT-B0, 51.54 with MiT-B2), these "
    "of the last. Published evaluation crops 1024 x 1024 from the middle; here the image is "
    "resized as a whole.",
    lr=6e-5,
    epochs=500,
    images=302,
    cost=0.25,
)
