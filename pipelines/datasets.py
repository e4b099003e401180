"""The data sets fastseg can read, as data."""

from __future__ import annotations

from .spec import DatasetSpec, LabelSpec, ModalitySpec, label_table, unknown_name

# name, colour; the order is the train id
_DELIVER_CLASSES = (
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

DELIVER = DatasetSpec(
    name="deliver",
    layout="{folder}/{condition}/{split}/{scene}/{frame}_{tag}_front.png",
    sample_id="{condition}/{split}/{scene}/{frame}",
    modalities=(
        ModalitySpec(
            name="img",
            letter="R",
            folder="img",
            tag="rgb",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        # what every published config calls depth is the HHA encoding, not the folder "depth"
        ModalitySpec(name="depth", letter="D", folder="hha", tag="depth"),
        # scenes that end in _eventlowres store events at 512 x 512
        ModalitySpec(
            name="event",
            letter="E",
            folder="event",
            tag="event",
            interpolation="nearest",
            any_size=True,
        ),
        ModalitySpec(
            name="lidar", letter="L", folder="lidar", tag="lidar", interpolation="nearest"
        ),
    ),
    label=LabelSpec(
        folder="semantic",
        tag="semantic",
        table=label_table({0: 255, 255: 255, **{raw: raw - 1 for raw in range(1, 26)}}),
    ),
    classes=tuple(name for name, _ in _DELIVER_CLASSES),
    palette=tuple(colour for _, colour in _DELIVER_CLASSES),
    splits=("train", "val", "test"),
    conditions=("cloud", "fog", "night", "rain", "sun"),
    cases=("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres"),
)
"""DELIVER (arXiv:2303.01480), front view, as in ``semseg/datasets/deliver.py`` of its repository.

Normalisation is the published one: ImageNet statistics for RGB, the others only divided by 255.
We depart from it in one place: events and LiDAR change size by nearest, because the published
bilinear rule smears binary and sparse maps; ``dataclasses.replace`` on the modality brings it back.
"""

_DATASETS = {spec.name: spec for spec in (DELIVER,)}


def get_dataset(name: str) -> DatasetSpec:
    """The spec called ``name``.

    Raises:
        DataError: there is none; the message has the nearest name.
    """
    if name not in _DATASETS:
        raise unknown_name("data set", name, _DATASETS)
    return _DATASETS[name]
