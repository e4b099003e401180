"""Every spec: paths as published, label maps, letters, splits, and what is fed to a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastseg.pipelines import DataConfig, DataError, build_loader, get_dataset
from fastseg.pipelines.datasets.catalogue import DATASETS
from fastseg.pipelines.datasets.path_templates import relative_path, sample_of
from fastseg.pipelines.datasets.split_files import list_split
from tests.support import dataset_trees as trees

PATHS = {
    ("deliver", "grey_depth"): "depth/fog/val/MAP_4_point12/157550_depth_front.png",
    ("deliver", "label"): "semantic/fog/val/MAP_4_point12/157550_semantic_front.png",
    ("muses", "frame_camera"): "frame_camera/val/fog/night/REC1_frame_2_frame_camera.png",
    ("muses", "lidar"): "projected_to_rgb/lidar/val/fog/night/REC1_frame_2_lidar.png",
    ("muses", "label"): "gt_semantic/val/fog/night/REC1_frame_2_gt_labelTrainIds.png",
    ("muses-npz", "radar"): "projected_to_rgb/radar/val/fog/night/REC1_frame_2_radar.npz",
    ("muses-raw", "lidar"): "lidar/val/fog/night/REC1_frame_2_lidar.bin",
    ("muses-raw", "event_camera"): "event_camera/val/fog/night/REC1_frame_2_event_camera.h5",
    ("muses-raw", "radar"): "radar/val/fog/night/REC1_frame_2_radar.png",
    ("muses-anyseg", "event_camera"): "event_camera/val/fog/night/REC1_frame_2_event_camera.png",
    ("mcubes", "image"): "polL_color/outscene1208_2_0000000150.png",
    ("mcubes", "dolp"): "polL_dolp/outscene1208_2_0000000150.npy",
    ("mcubes", "label"): "GT/outscene1208_2_0000000150.png",
    ("nyu", "depth"): "HHA/000012.jpg",
    ("nyu", "label"): "Label/000012.png",
    ("mfnet", "thermal"): "ther/00001D.jpg",
    ("kitti360", "img"): "data_2d_raw/2013_sync/image_00/data_rect/0000000005.png",
    ("kitti360", "depth"): "data_2d_hha/2013_sync/image_00/data_rect/0000000005.png",
    ("kitti360", "event"): "data_2d_event/2013_sync/0000000005_event_image.png",
    ("kitti360", "lidar"): "data_2d_lidar/2013_sync/image_00/data_rect/0000000005_color.png",
    ("kitti360", "label"): "data_2d_semantics/train/2013_sync/image_00/semantic/0000000005.png",
}
SAMPLES = {
    "deliver": "fog/val/MAP_4_point12/157550",
    "muses": "val/fog/night/REC1_frame_2",
    "mcubes": "outscene1208_2_0000000150",
    "nyu": "000012",
    "mfnet": "00001D",
    "kitti360": "2013_sync/0000000005",
}


@pytest.mark.parametrize(("name", "part"), PATHS, ids="-".join)
def test_paths_are_the_published_ones(name: str, part: str) -> None:
    spec = get_dataset(name)
    file = spec.label.file if part == "label" else spec.select([part])[0].files[0]
    sample = SAMPLES[name.split("-")[0]]
    assert relative_path(spec, "val", sample, file) == PATHS[name, part]
    assert sample_of(spec, "val", file, PATHS[name, part]) == sample


@pytest.mark.parametrize(
    ("name", "cameras", "events", "lidars"),
    [
        ("deliver", ["img"], ["event"], ["lidar"]),
        ("muses", ["frame_camera"], ["event_camera"], ["lidar"]),
        ("muses-anyseg", ["frame_camera"], ["event_camera"], ["lidar"]),
        ("mcubes", ["image", "nir"], [], []),
        ("nyu", ["img"], [], []),
        ("mfnet", ["img"], [], []),
        ("kitti360", ["img"], ["event"], ["lidar"]),
    ],
)
def test_sensors(name: str, cameras: list[str], events: list[str], lidars: list[str]) -> None:
    spec = get_dataset(name)
    everything = (*spec.modalities, *spec.extras)
    for sensor, expected in (("camera", cameras), ("event", events), ("lidar", lidars)):
        assert [m.name for m in everything if m.sensor == sensor] == expected


def test_names_and_letters() -> None:
    letters = {name: "".join(m.letter for m in spec.modalities) for name, spec in DATASETS.items()}
    assert letters == {
        **dict.fromkeys(("deliver", "deliver-cmnext", "deliver-standardised"), "RDEL"),
        **dict.fromkeys(("muses", "muses-npz", "muses-anyseg", "muses-robustseg"), "FEL"),
        "muses-raw": "FELR",
        **dict.fromkeys(("mcubes", "mcubes-masked", "mcubes-stitchfusion"), "RADN"),
        **{"nyu": "RD", "mfnet": "RT", "kitti360": "RDEL"},
    }
    classes = {name: spec.num_classes for name, spec in DATASETS.items() if "-" not in name}
    assert classes == {
        **{"deliver": 25, "muses": 19, "mcubes": 20, "nyu": 40, "mfnet": 9, "kitti360": 19}
    }
    with pytest.raises(DataError, match=r"muses-anysge.*did you mean 'muses-anyseg'"):
        get_dataset("muses-anysge")


@pytest.mark.parametrize("spec", DATASETS.values(), ids=DATASETS)
def test_every_class_has_a_raw_value_and_a_colour_of_its_own(spec) -> None:
    assert set(range(spec.num_classes)) <= set(spec.label.table)
    assert len(set(spec.palette)) == spec.num_classes


def test_label_maps() -> None:
    def mapped(name: str, *raw: int) -> list[int]:
        return [get_dataset(name).label.table[value] for value in raw]

    assert mapped("muses", 0, 18, 19, 255) == [0, 18, -1, 255]
    assert mapped("muses-anyseg", 0, 18, 19, 255) == [0, 18, -1, 0]  # void counts as road
    assert mapped("mcubes", 0, 19, 20, 255) == [0, 19, -1, 255]
    assert mapped("nyu", 0, 1, 40, 41, 255) == [255, 0, 39, -1, 255]
    assert mapped("mfnet", 0, 8, 9) == [0, 8, -1]
    # the table of the published loader, and 45 to 254, which it would have fed as classes
    assert mapped("kitti360", 7, 8, 11, 12, 13, 17, 31, 32, 33) == [0, 1, 2, 3, 4, 5, 16, 17, 18]
    assert mapped("kitti360", *range(19, 29)) == list(range(6, 16))
    assert mapped("kitti360", 34, 35, 37, 0, 44, 255, 45) == [2, 4, 5, 255, 255, 255, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ()}, "one file, or several arrays"),
        ({"bits": (12,)}, "bits must be 8, 16 or both"),
        ({"high_byte": True}, "only 16-bit codes"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"scale": 0.0}, "scale must not be 0"),
    ],
    ids=["files", "bits", "high-byte", "std", "scale"],
)
def test_modalities_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(get_dataset("deliver").modalities[0], **change)


def test_conditions_may_span_two_fields(muses_tree: Path) -> None:
    muses = get_dataset("muses")

    def count(*conditions: str) -> int:
        return len(list_split(muses, muses_tree, "train", conditions=conditions))

    assert (count(), count("rain"), count("day"), count("rain", "snow")) == (6, 2, 4, 4)
    assert (count("snow", "day"), count("clear", "rain", "night")) == (2, 2)
    with pytest.raises(DataError, match="no sample of split 'train' with rain day"):
        count("rain", "day")
    with pytest.raises(DataError, match=r"unknown condition of muses: 'nihgt'.*'night'"):
        count("nihgt")


def test_list_files_decide_the_split_and_its_order(mcubes_tree: Path) -> None:
    mcubes = get_dataset("mcubes")
    stems = list_split(mcubes, mcubes_tree, "train").sample_ids
    path = mcubes_tree / "list_folder/train.txt"
    # the published reader takes what stands before the first space
    path.write_text(f"{stems[2]} something else\n\n{stems[0]}\n")
    assert list_split(mcubes, mcubes_tree, "train").sample_ids == (stems[2], stems[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\na\n", r"train\.txt names a in lines 1 and 3.*Take one of them out"),
        ("a\nb/c\n", r"train\.txt, line 2: 'b/c' is not of the form \{stem\}"),
        ("\n", r"no sample of split 'train' of .*train\.txt"),
        (None, r"cannot read .*train\.txt.*No such file.*restore it"),
    ],
    ids=["twice", "form", "empty", "gone"],
)
def test_bad_lists_are_explained(mcubes_tree: Path, content: str | None, message: str) -> None:
    path = mcubes_tree / "list_folder/train.txt"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        list_split(get_dataset("mcubes"), mcubes_tree, "train")


def test_listed_samples_without_files_are_missing(mcubes_tree: Path) -> None:
    mcubes = get_dataset("mcubes")
    gone = sorted(mcubes_tree.glob("polL_aolp_cos/*train*"))[1]
    gone.unlink()
    with pytest.raises(DataError, match=r"aolp: 1 of 4") as caught:
        list_split(mcubes, mcubes_tree, "train")
    assert str(gone) in str(caught.value)


def test_raw_muses_points_to_the_preparation(muses_tree: Path) -> None:
    config = DataConfig(dataset="muses-raw", root=muses_tree, size=64)
    with pytest.raises(DataError, match=r"event_camera, lidar, radar of muses-raw are raw") as info:
        build_loader(config, train=True)
    assert "fastseg.data prepare muses --root" in str(info.value)


def test_missing_projections_point_to_the_preparation(muses_tree: Path) -> None:
    for path in muses_tree.glob("projected_to_rgb/lidar/**/*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"lidar: 6 of 6") as caught:
        list_split(get_dataset("muses"), muses_tree, "train")
    assert "fastseg.data prepare muses --root" in str(caught.value)
    assert "--data.dataset muses-npz" in str(caught.value)


def _one_sample(root: Path, name: str) -> DataConfig:
    """A data set of one sample, written where the specs' paths say, as 8-bit images."""
    spec = get_dataset(name)
    sample, split = SAMPLES[name], spec.splits[0]
    parts = {m.name: m.files[0] for m in spec.modalities} | {"label": spec.label.file}
    for part, file in parts.items():
        path = root / relative_path(spec, split, sample, file)
        pixels = trees.random_bytes(part, 32, 64, 3)
        if part == "label":
            legal = [raw for raw, train_id in enumerate(spec.label.table) if train_id >= 0]
            pixels = np.array(legal)[trees.random_bytes(part, 32, 64, top=len(legal))]
        trees.save(path, pixels)
    line = spec.list_line.format(drive="2013_sync", frame="0000000005") or sample
    (root / f"{split}.txt").write_text(line + "\n")
    return DataConfig(
        dataset=name, root=root, size=32, eval_split=split, eval_batch_size=1, workers=0
    )


@pytest.mark.parametrize("name", ["nyu", "mfnet", "kitti360"])
def test_short_specs_load_through_both_loaders(tmp_path: Path, open_loader, name: str) -> None:
    pytest.importorskip("nvidia.dali")
    config = _one_sample(tmp_path, name)
    batches = [
        next(open_loader(replace(config, loader=loader), train=False).batches())
        for loader in ("torch", "dali")
    ]
    assert (batches[0].images == batches[1].images).all()
    assert (batches[0].labels == batches[1].labels).all()
    assert batches[0].sample_ids == (SAMPLES[name],)
    spec = get_dataset(name)
    raw = np.array(spec.label.table)[
        np.array([r for r, t in enumerate(spec.label.table) if t >= 0])[
            trees.random_bytes(
                "label", 32, 64, top=sum(train_id >= 0 for train_id in spec.label.table)
            )
        ]
    ]
    np.testing.assert_array_equal(batches[0].labels[0], raw)
    if name == "kitti360":  # PNG: values are exact
        lidar = batches[0].images[3, 0].permute(1, 2, 0).numpy() * 255
        np.testing.assert_array_equal(lidar.round(), trees.random_bytes("lidar", 32, 64, 3))
