"""MUSES (arXiv:2401.12761): real driving in four weathers by day and night, 1080 x 1920.

``muses``: camera images and LiDAR, radar and events projected into them, as 16- and 8-bit PNG in
the encoding of the public SDK (timbroed/MUSES, ``scripts/project_sensors_to_rgb.py``), under
``projected_to_rgb``; ``python -m fastseg.data prepare muses`` makes them. OpenCV wrote the SDK's
channels in reverse, so RGB order is (height, intensity, range); here the channels are put back to
(range [m], intensity, height [m]), for events (positive, negative, 0) counts. Values are physical,
whitened by the statistics of ``cafuser/config.py`` (timbroed/CAFuser).

``muses-npz``: the SDK's default output, the same values as float arrays.
``muses-raw``: the download, which can be checked and projected but not loaded.
``muses-anyseg``, ``muses-robustseg``: what those repositories feed (``semseg/datasets/muses.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..spec import ConditionSpec, DatasetSpec, FileSpec, LabelSpec, ModalitySpec, label_table
from . import cityscapes, imagenet

SENSORS: Final = ("event_camera", "lidar", "radar")
PROJECTED = "projected_to_rgb"
"""Folder of the projections in the root."""
CODE_STEPS, CODE_SHIFT = 150, 100
"""code = trunc((value + 100) * 150) of projected LiDAR and radar."""
EMPTY = CODE_SHIFT * CODE_STEPS
"""Code of the value 0, which means no return."""

_CAMERA = ModalitySpec(
    "frame_camera",
    "F",
    (FileSpec("frame_camera", "frame_camera"),),
    sensor="camera",
    mean=imagenet.MEAN,
    std=imagenet.STD,
)
_EVENTS = ModalitySpec(
    "event_camera",
    "E",
    (FileSpec(f"{PROJECTED}/event_camera", "event_camera"),),
    sensor="event",
    channels=(2, 1, 0),
    interpolation="nearest",
    scale=1.0,
    unit="events",
    mean=(0.12577528, 0.12728328, 0.0),
    std=(0.54420582, 0.47625199, 1.0),
    shown=((0.0, 3.0),) * 3,
)
_LIDAR = ModalitySpec(
    "lidar",
    "L",
    (FileSpec(f"{PROJECTED}/lidar", "lidar"),),
    sensor="lidar",
    bits=(16,),
    channels=(2, 1, 0),
    interpolation="nearest",
    scale=1 / CODE_STEPS,
    offset=-CODE_SHIFT,
    unit="m, 0..255, m",
    mean=(4.91737, 6.149373, 0.27025607),
    std=(13.34715295, 17.63751258, 1.23208644),
    empty=EMPTY,
    shown=((0.0, 80.0), (0.0, 255.0), (-2.0, 6.0)),
)
_RADAR = replace(
    _LIDAR,
    name="radar",
    letter="R",
    sensor="other",
    files=(FileSpec(f"{PROJECTED}/radar", "radar"),),
    unit="m, 0..255, 0",
    mean=(4.003564, 9.342789, 0.0),
    std=(14.60685343, 19.29406236, 1.0),
    shown=((0.0, 150.0), (0.0, 255.0), (0.0, 1.0)),
)
_TRAIN_IDS = {**{train_id: train_id for train_id in range(19)}, 255: 255}

MUSES = DatasetSpec(
    name="muses",
    path_template="{folder}/{split}/{weather}/{tod}/{scene}_{tag}{suffix}",
    sample_id="{split}/{weather}/{tod}/{scene}",
    modalities=(_CAMERA, _EVENTS, _LIDAR),
    extras=(_RADAR,),
    label=LabelSpec(FileSpec("gt_semantic", "gt_labelTrainIds"), label_table(_TRAIN_IDS)),
    classes=cityscapes.CLASSES,
    palette=cityscapes.PALETTE,
    splits=("train", "val", "test"),
    conditions=(
        ConditionSpec("weather", ("clear", "fog", "rain", "snow")),
        ConditionSpec("tod", ("day", "night")),
    ),
    published=(("train", 1500), ("val", 250), ("test", 750)),
    hint="The download holds events as .h5 and LiDAR as .bin: project them with python -m "
    "fastseg.data prepare muses --root ROOT; .npz files of the SDK are --data.dataset muses-npz",
)
"""Labels keep 255 as ignored. The test labels may be withheld; see the data set's site."""


def _as_array(modality: ModalitySpec) -> ModalitySpec:
    """The SDK's .npz of a projection: values themselves, channels in the order of the code."""
    return replace(
        modality,
        files=(replace(modality.files[0], suffix=".npz"),),
        decoder="array",
        bits=(8,),
        channels=(0, 1, 2),
        scale=1.0,
        offset=0.0,
        empty=0,
    )


NPZ = replace(
    MUSES,
    name="muses-npz",
    modalities=(_CAMERA, _as_array(_EVENTS), _as_array(_LIDAR)),
    extras=(_as_array(_RADAR),),
    hint="The SDK writes .npz files unless told otherwise; PNG files are --data.dataset muses",
)

RAW = replace(
    MUSES,
    name="muses-raw",
    modalities=(
        _CAMERA,
        ModalitySpec(
            "event_camera",
            "E",
            (FileSpec("event_camera", "event_camera", ".h5"),),
            decoder="events",
        ),
        ModalitySpec("lidar", "L", (FileSpec("lidar", "lidar", ".bin"),), decoder="points"),
        ModalitySpec("radar", "R", (FileSpec("radar", "radar"),), decoder="polar"),
    ),
    extras=(),
    required=("calib.json", "meta.json"),
    hint="Unpack every archive of the download into the same folder",
)


def _as_fed(modality: ModalitySpec, **change: object) -> ModalitySpec:
    """Codes 0..255 as they are, in RGB order, from a folder beside the camera's."""
    fed = replace(
        modality,
        files=(FileSpec(modality.name, modality.name),),
        channels=(0, 1, 2),
        interpolation="bilinear",
        high_byte=modality.bits == (16,),
        scale=1.0,
        offset=0.0,
        unit="",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        empty=0,
        shown=((0.0, 255.0),) * 3,
    )
    return replace(fed, **change)  # type: ignore[arg-type]


ANYSEG = replace(
    MUSES,
    name="muses-anyseg",
    modalities=(_as_fed(_CAMERA), _as_fed(_EVENTS), _as_fed(_LIDAR)),
    extras=(_as_fed(_RADAR),),
    label=replace(MUSES.label, table=label_table(_TRAIN_IDS | {255: 0})),
    resize=(1024, 1024),
    hint="This reading takes the projected PNG files from folders event_camera, lidar and radar "
    "beside frame_camera and gt_semantic",
)
"""zhengxuJosh/AnySeg: the high byte of 16-bit codes, no division, no whitening, everything
stretched to 1024 x 1024 (bicubic) and void counted as road. It augments nothing: train with
``--data.size 1024 --data.scale 1 1 --data.flip 0``."""

ROBUSTSEG = replace(
    ANYSEG,
    name="muses-robustseg",
    modalities=(_as_fed(_CAMERA), _as_fed(_EVENTS), _as_fed(_LIDAR, stretch=True)),
    extras=(_as_fed(_RADAR, stretch=True),),
)
"""RobustSeg: as AnySeg, but each LiDAR and radar image stretched to 0..255 by its own extremes.
A constant image is 0 here; there it becomes NaN."""

SPECS = (MUSES, NPZ, RAW, ANYSEG, ROBUSTSEG)
