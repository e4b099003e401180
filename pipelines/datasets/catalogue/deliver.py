"""DELIVER (arXiv:2303.01480): synthetic driving, front view, five weathers, five sensor faults.

Layout, label map and normalisation are those of ``semseg/datasets/deliver.py`` and
``semseg/augmentations_mm.py`` in its repository (jamycheung/DELIVER). We depart from it in one
place: events and LiDAR change size by nearest, because its bilinear rule smears binary and sparse
maps. ``deliver-cmnext`` is the published reading.
"""

from __future__ import annotations

from dataclasses import replace

from ..spec import ConditionSpec, DatasetSpec, FileSpec, LabelSpec, ModalitySpec, label_table
from . import imagenet

# name, colour; the order is the train id
_CLASSES = (
    ("Building", (70, 70, 70)),
    ("Fence", (100, 40, 40)),
    ("Other", (55, 90, 80)),
    ("Pedestrian", (220, 20, 60)),
    ("Pole", (153, 153, 153)),
    ("RoadLine", (157, 234, 50)),
    ("Road", (128, 64, 128)),
    ("SideWalk", (244, 35, 232)),
    ("Vegetation", (107, 142, 35)),
    ("Cars", (0, 0, 142)),
    ("Wall", (102, 102, 156)),
    ("TrafficSign", (220, 220, 0)),
    ("Sky", (70, 130, 180)),
    ("Ground", (81, 0, 81)),
    ("Bridge", (150, 100, 100)),
    ("RailTrack", (230, 150, 140)),
    ("GroundRail", (180, 165, 180)),
    ("TrafficLight", (250, 170, 30)),
    ("Static", (110, 190, 160)),
    ("Dynamic", (170, 120, 50)),
    ("Water", (45, 60, 150)),
    ("Terrain", (145, 170, 100)),
    ("TwoWheeler", (0, 0, 230)),
    ("Bus", (0, 60, 100)),
    ("Truck", (0, 0, 70)),
)

_IMG = ModalitySpec(
    "img",
    "R",
    (FileSpec("img", "rgb"),),
    sensor="camera",
    mean=imagenet.MEAN,
    std=imagenet.STD,
)
# what every published config calls depth is the HHA encoding, not the folder "depth"
_DEPTH = ModalitySpec("depth", "D", (FileSpec("hha", "depth"),))
# scenes that end in _eventlowres store events at 512 x 512
_EVENT = ModalitySpec(
    "event",
    "E",
    (FileSpec("event", "event"),),
    sensor="event",
    interpolation="nearest",
    any_size=True,
)
_LIDAR = ModalitySpec(
    "lidar", "L", (FileSpec("lidar", "lidar"),), sensor="lidar", interpolation="nearest"
)
_GREY_DEPTH = ModalitySpec("grey_depth", "G", (FileSpec("depth", "depth"),))

DELIVER = DatasetSpec(
    name="deliver",
    path_template="{folder}/{condition}/{split}/{scene}/{frame}_{tag}_front.png",
    sample_id="{condition}/{split}/{scene}/{frame}",
    modalities=(_IMG, _DEPTH, _EVENT, _LIDAR),
    extras=(_GREY_DEPTH,),
    label=LabelSpec(
        FileSpec("semantic", "semantic"),
        label_table({0: 255, 255: 255, **{raw: raw - 1 for raw in range(1, 26)}}),
        # as the simulator writes it: green and blue tell instances apart
        red_alone=True,
    ),
    classes=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    splits=("train", "val", "test"),
    conditions=(ConditionSpec("condition", ("cloud", "fog", "night", "rain", "sun")),),
    cases=("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres"),
    published=(("train", 3983), ("val", 2005), ("test", 1897)),
)
"""Images are ImageNet-whitened, the others only divided by 255, as published.

``grey_depth`` reads the folder ``depth`` (far is bright, unit not documented), which no published
config uses: ``--data.modalities img grey_depth event lidar``.
"""

CMNEXT = replace(
    DELIVER,
    name="deliver-cmnext",
    modalities=(
        _IMG,
        _DEPTH,
        replace(_EVENT, interpolation="bilinear"),
        replace(_LIDAR, interpolation="bilinear"),
    ),
)
"""As the DELIVER, AnySeg and RobustSeg repositories feed it: events and LiDAR resized bilinearly
(``RandomResizedCrop`` and ``Resize`` of ``semseg/augmentations_mm.py``)."""

STANDARDISED = replace(
    DELIVER,
    name="deliver-standardised",
    modalities=(
        _IMG,
        replace(
            _DEPTH,
            mean=(110.34616 / 255, 66.50577 / 255, 117.07793 / 255),
            std=(44.36736295 / 255, 77.20659029 / 255, 105.55149919 / 255),
        ),
        replace(
            _EVENT,
            mean=(17.667162 / 255, 0.0, 16.789158 / 255),
            std=(64.75343739 / 255, 1 / 255, 63.24056359 / 255),
        ),
        replace(_LIDAR, mean=(1.7969494 / 255,) * 3, std=(7.78596192 / 255,) * 3),
    ),
    extras=(replace(_GREY_DEPTH, mean=(116.9351 / 255,) * 3, std=(105.70791802 / 255,) * 3),),
)
"""Every modality whitened, by the statistics of ``cafuser/config.py`` (timbroed/CAFuser)."""

SPECS = (DELIVER, CMNEXT, STANDARDISED)
