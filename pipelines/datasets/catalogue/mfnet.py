"""MFNet as ``semseg/datasets/mfnet.py`` (jamycheung/DELIVER) reads it: RGB and thermal, both JPEG.

``unlabeled`` is a class and scored, and ``test.txt`` is that loader's validation split. Its palette
has eight rows for nine classes: ``unlabeled`` is black here and the rows belong to the others.
"""

from __future__ import annotations

from ..spec import DatasetSpec, FileSpec, LabelSpec, ModalitySpec, label_table
from . import imagenet

_CLASSES = (
    ("unlabeled", (0, 0, 0)),
    ("car", (64, 0, 128)),
    ("person", (64, 64, 0)),
    ("bike", (0, 128, 192)),
    ("curve", (0, 0, 192)),
    ("car_stop", (128, 128, 0)),
    ("guardrail", (64, 64, 128)),
    ("color_cone", (192, 128, 128)),
    ("bump", (192, 64, 0)),
)

MFNET = DatasetSpec(
    name="mfnet",
    path_template="{folder}/{stem}{suffix}",
    sample_id="{stem}",
    modalities=(
        ModalitySpec(
            "img",
            "R",
            (FileSpec("rgb", suffix=".jpg"),),
            sensor="camera",
            mean=imagenet.MEAN,
            std=imagenet.STD,
        ),
        ModalitySpec("thermal", "T", (FileSpec("ther", suffix=".jpg"),)),
    ),
    label=LabelSpec(FileSpec("labels"), label_table({i: i for i in range(len(_CLASSES))})),
    classes=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    splits=("train", "val", "test"),
    split_list="{split}.txt",
    published=(("train", 784), ("val", 392), ("test", 393)),
)

SPECS = (MFNET,)
