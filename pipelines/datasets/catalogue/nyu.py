"""NYU Depth V2 as ``semseg/datasets/nyu.py`` (jamycheung/DELIVER) reads it: RGB and HHA, both JPEG.

That loader calls ``test.txt`` its validation split. Its palette is empty; the colours here are
those of PASCAL VOC's rule for as many classes.
"""

from __future__ import annotations

from ..spec import DatasetSpec, FileSpec, LabelSpec, ModalitySpec, label_table
from . import imagenet

_CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag", "otherstructure", "otherfurniture", "otherprop"),
)


def _colour(index: int) -> tuple[int, int, int]:
    """Bits 0, 1, 2 of the index are the top bits of R, G, B, the next three the ones below."""
    red, green, blue = (
        sum((index >> 3 * place + channel & 1) << 7 - place for place in range(3))
        for channel in range(3)
    )
    return red, green, blue


NYU = DatasetSpec(
    name="nyu",
    path_template="{folder}/{stem}{suffix}",
    sample_id="{stem}",
    modalities=(
        ModalitySpec(
            "img",
            "R",
            (FileSpec("RGB", suffix=".jpg"),),
            sensor="camera",
            mean=imagenet.MEAN,
            std=imagenet.STD,
        ),
        ModalitySpec("depth", "D", (FileSpec("HHA", suffix=".jpg"),)),
    ),
    label=LabelSpec(
        FileSpec("Label"),
        label_table({0: 255, 255: 255, **{raw: raw - 1 for raw in range(1, 41)}}),
    ),
    classes=_CLASSES,
    palette=tuple(_colour(train_id + 1) for train_id in range(len(_CLASSES))),
    splits=("train", "test"),
    split_list="{split}.txt",
    published=(("train", 795), ("test", 654)),
)

SPECS = (NYU,)
