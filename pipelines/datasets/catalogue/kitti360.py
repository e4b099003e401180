"""KITTI-360 as ``semseg/datasets/kitti360.py`` (jamycheung/DELIVER) reads it.

The list files hold paths of camera images; the other paths follow from them. Depth (HHA) and events
were synthesised by the authors and never released, so they must be made; LiDAR images are colour
coded.
"""

from __future__ import annotations

from ..spec import DatasetSpec, FileSpec, LabelSpec, ModalitySpec, label_table
from . import cityscapes, imagenet

# train ids by raw id; the other raw ids up to 44 are ignored
_TRAIN_IDS = {
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5},
    **{raw: raw - 13 for raw in range(19, 29)},
    **{31: 16, 32: 17, 33: 18, 34: 2, 35: 4, 37: 5},
}

KITTI360 = DatasetSpec(
    name="kitti360",
    path_template="{folder}/{drive}/image_00/data_rect/{frame}{tag}.png",
    sample_id="{drive}/{frame}",
    modalities=(
        ModalitySpec(
            "img",
            "R",
            (FileSpec("data_2d_raw"),),
            sensor="camera",
            mean=imagenet.MEAN,
            std=imagenet.STD,
        ),
        ModalitySpec("depth", "D", (FileSpec("data_2d_hha"),)),
        ModalitySpec(
            "event",
            "E",
            (FileSpec("data_2d_event", path_template="{folder}/{drive}/{frame}_event_image.png"),),
            sensor="event",
            interpolation="nearest",
        ),
        ModalitySpec(
            "lidar",
            "L",
            (FileSpec("data_2d_lidar", "_color"),),
            sensor="lidar",
            interpolation="nearest",
        ),
    ),
    label=LabelSpec(
        FileSpec(
            "data_2d_semantics/train",
            path_template="{folder}/{drive}/image_00/semantic/{frame}.png",
        ),
        label_table({**dict.fromkeys((*range(45), 255), 255), **_TRAIN_IDS}),
    ),
    classes=cityscapes.CLASSES,
    palette=cityscapes.PALETTE,
    splits=("train", "val"),
    split_list="{split}.txt",
    list_line="data_2d_raw/{drive}/image_00/data_rect/{frame}.png",
    published=(("train", 49004), ("val", 12276)),
    hint="Depth and events of KITTI-360 were never released; leave them out with "
    "--data.modalities img lidar, or make them",
)

SPECS = (KITTI360,)
