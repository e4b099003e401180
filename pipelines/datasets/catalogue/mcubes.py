"""MCubeS (CVPR 2022, Multimodal Material Segmentation): outdoor scenes, 20 materials.

Layout and values are those of ``semseg/datasets/mcubes.py`` (jamycheung/DELIVER) and of the data
set's README. Colour and near infrared are 8- or 16-bit PNG, read as fractions of white; angle and
degree of linear polarisation are float arrays, read as they are: (sin, cos, sin) and (d, d, d),
neither clipped nor whitened. The first 192 columns have no near infrared and are cut off.

The DELIVER, AnySeg and RobustSeg loaders call ``test.txt`` their validation split and choose the
best epoch on it; ``--data.eval-split test`` scores on the same images.
"""

from __future__ import annotations

from dataclasses import replace

from ..spec import DatasetSpec, FileSpec, LabelSpec, ModalitySpec, label_table
from . import imagenet

_CLASSES = (
    ("asphalt", (44, 160, 44)),
    ("concrete", (31, 119, 180)),
    ("metal", (255, 127, 14)),
    ("road_marking", (214, 39, 40)),
    ("fabric", (140, 86, 75)),
    ("glass", (127, 127, 127)),
    ("plaster", (188, 189, 34)),
    ("plastic", (255, 152, 150)),
    ("rubber", (23, 190, 207)),
    ("sand", (174, 199, 232)),
    ("gravel", (196, 156, 148)),
    ("ceramic", (197, 176, 213)),
    ("cobblestone", (247, 182, 210)),
    ("brick", (199, 199, 199)),
    ("grass", (219, 219, 141)),
    ("wood", (158, 218, 229)),
    ("leaf", (57, 59, 121)),
    ("water", (107, 110, 207)),
    ("human", (156, 158, 222)),
    ("sky", (99, 121, 57)),
)

_IMAGE = ModalitySpec(
    "image",
    "R",
    (FileSpec("polL_color"),),
    sensor="camera",
    bits=(8, 16),
    scale=1 / 65535,
    mean=imagenet.MEAN,
    std=imagenet.STD,
)
_AOLP = ModalitySpec(
    "aolp",
    "A",
    (FileSpec("polL_aolp_sin", suffix=".npy"), FileSpec("polL_aolp_cos", suffix=".npy")),
    decoder="array",
    channels=(0, 1, 0),
    scale=1.0,
    shown=((-1.0, 1.0), (0.0, 1.0), (-1.0, 1.0)),
)
_DOLP = ModalitySpec(
    "dolp",
    "D",
    (FileSpec("polL_dolp", suffix=".npy"),),
    decoder="array",
    channels=(0, 0, 0),
    scale=1.0,
)
_NIR = ModalitySpec(
    "nir", "N", (FileSpec("NIR_warped"),), sensor="camera", bits=(8, 16), scale=1 / 65535
)

MCUBES = DatasetSpec(
    name="mcubes",
    path_template="{folder}/{stem}{suffix}",
    sample_id="{stem}",
    modalities=(_IMAGE, _AOLP, _DOLP, _NIR),
    label=LabelSpec(FileSpec("GT"), label_table({**{i: i for i in range(20)}, 255: 255})),
    classes=tuple(name for name, _ in _CLASSES),
    palette=tuple(colour for _, colour in _CLASSES),
    splits=("train", "val", "test"),
    split_list="list_folder/{split}.txt",
    published=(("train", 302), ("val", 96), ("test", 102)),
    skip_columns=192,
)
"""The mask of invalid near-infrared pixels is not used, as in the DELIVER line of loaders."""

MASKED = replace(
    MCUBES,
    name="mcubes-masked",
    label=replace(MCUBES.label, mask=FileSpec("NIR_warped_mask")),
)
"""As MCubeSNet (kyotovision-public/multimodal-material-segmentation, ``utils/loss.py``): labels are
ignored where the mask is white. That loss overwrites the labels it is given, so its own scores
leave these pixels out as well."""

STITCHFUSION = replace(
    MCUBES,
    name="mcubes-stitchfusion",
    modalities=(_IMAGE, _AOLP, replace(_DOLP, scale=1 / 2, offset=0.55 / 2), _NIR),
)
"""StitchFusion's reading: the degree of polarisation becomes (d + 0.55) / 2."""

SPECS = (MCUBES, MASKED, STITCHFUSION)
