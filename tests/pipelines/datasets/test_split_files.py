from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.datasets.path_templates import case_of, conditions_of
from fastseg.pipelines.datasets.spec import label_table
from fastseg.pipelines.datasets.split_files import list_split

DELIVER = get_dataset("deliver")


def test_deliver_is_what_the_published_code_reads() -> None:
    assert DELIVER.num_classes == 25
    assert [(m.name, m.letter, m.files[0].folder) for m in DELIVER.modalities] == [
        ("img", "R", "img"),
        ("depth", "D", "hha"),
        ("event", "E", "event"),
        ("lidar", "L", "lidar"),
    ]
    table = DELIVER.label.table
    assert (table[0], table[255], table[1], table[25], table[26]) == (255, 255, 0, 24, -1)
    named = dict(zip(DELIVER.classes, DELIVER.palette, strict=True))
    assert named["Building"] == (70, 70, 70)
    assert named["Sky"] == (70, 130, 180)
    assert DELIVER.classes[24] == "Truck"
    assert len(set(DELIVER.palette)) == 25


def test_misspelt_names_get_the_nearest() -> None:
    with pytest.raises(DataError, match=r"delver.*did you mean 'deliver'"):
        get_dataset("delver")
    with pytest.raises(DataError, match=r"lidra.*did you mean 'lidar'"):
        DELIVER.select(["img", "lidra"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": (DELIVER.modalities[0],) * 2}, "names repeat"),
        ({"palette": DELIVER.palette[:3]}, "3 colours for 25"),
        ({"classes": ("a",), "palette": ((0, 0, 0),)}, "not train ids"),
        # an id of 256 would become 0 in 8 bits, a class of id 255 would be ignored
        ({"ignore_index": 256}, "labels have 8 bits.*number of classes, 25, and 255; got 256"),
        ({"ignore_index": -1}, "got -1"),
        ({"ignore_index": 24}, "got 24"),
        (
            {"classes": tuple(map(str, range(256))), "palette": ((0, 0, 0),) * 256},
            "number of classes, 256, and 255; got 255",
        ),
    ],
    ids=["names", "palette", "table", "beyond", "negative", "class", "classes"],
)
def test_spec_is_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DELIVER, **change)


def test_raw_values_beyond_8_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 to 255, got \[-1, 256\]"):
        label_table({0: 0, 256: 1, -1: 2})


def test_split_is_sorted_and_named_by_relative_path(deliver_tree: Path) -> None:
    files = list_split(DELIVER, deliver_tree, "val")
    assert files.sample_ids == (
        "cloud/val/MAP_3_point1_eventlowres/000000",
        "cloud/val/MAP_3_point1_eventlowres/000001",
        "cloud/val/MAP_3_point1_eventlowres/000002",
        "fog/val/MAP_3_point1/000000",
        "fog/val/MAP_3_point1/000001",
        "fog/val/MAP_3_point1/000002",
    )
    depth = files.path(3, DELIVER.modalities[1].files[0])
    assert depth == deliver_tree / "hha/fog/val/MAP_3_point1/000000_depth_front.png"
    assert all(
        files.path(i, part).is_file()
        for i in range(6)
        for m in DELIVER.modalities
        for part in m.files
    )


def test_filters_match_path_components(deliver_tree: Path) -> None:
    # root and split both contain "rain", the root contains "sun": substrings would take them all
    assert "rain" in deliver_tree.name
    rain = list_split(DELIVER, deliver_tree, "train", conditions=("rain",))
    assert {conditions_of(DELIVER, name) for name in rain.sample_ids} == {("rain",)}
    assert len(rain) == 4
    with pytest.raises(DataError, match=r"no sample of split 'val' with sun"):
        list_split(DELIVER, deliver_tree, "val", conditions=("sun",))


def test_cases_come_from_the_end_of_the_scene(deliver_tree: Path) -> None:
    faulty = list_split(DELIVER, deliver_tree, "train", cases=("overexposure",))
    assert {name.split("/")[2] for name in faulty.sample_ids} == {"MAP_2_point7_overexposure"}
    normal = list_split(DELIVER, deliver_tree, "train", cases=("normal",))
    assert {case_of(DELIVER, name) for name in normal.sample_ids} == {"normal"}
    assert len(normal) == 8


def test_a_root_that_contains_a_folder_name_is_harmless(deliver_tree: Path) -> None:
    moved = deliver_tree.parent / "img_rgb" / "img"
    shutil.copytree(deliver_tree, moved)
    files = list_split(DELIVER, moved, "val")
    assert len(files) == 6
    assert files.path(0, DELIVER.label.file).is_file()


def test_missing_files_are_counted_and_listed(deliver_tree: Path) -> None:
    gone = deliver_tree / "event/night/train/MAP_2_point7/000002_event_front.png"
    gone.unlink()
    with pytest.raises(DataError) as caught:
        list_split(DELIVER, deliver_tree, "train")
    assert "event: 1 of 16" in str(caught.value)
    assert str(gone) in str(caught.value)
    assert "--data.modalities" in str(caught.value)
    assert len(list_split(DELIVER, deliver_tree, "train", ("img", "lidar"))) == 16


def test_a_missing_image_does_not_hide_its_sample(deliver_tree: Path) -> None:
    (deliver_tree / "img/night/train/MAP_2_point7/000002_rgb_front.png").unlink()
    with pytest.raises(DataError, match="img: 1 of 16"):
        list_split(DELIVER, deliver_tree, "train")


def test_a_missing_folder_lists_twenty_files_at_most(deliver_tree: Path) -> None:
    shutil.rmtree(deliver_tree / "hha")
    shutil.rmtree(deliver_tree / "lidar")
    with pytest.raises(DataError) as caught:
        list_split(DELIVER, deliver_tree, "train")
    message = str(caught.value)
    assert f"depth: 16 of 16, folder {deliver_tree / 'hha'} does not exist" in message
    assert message.count("_front.png") == 20
    assert "and 12 more" in message


def test_strange_files_are_not_samples(deliver_tree: Path) -> None:
    scene = deliver_tree / "img/fog/val/MAP_3_point1"
    (scene / "._000000_rgb_front.png").write_bytes(b"leftover of an archive tool")
    (scene / "notes.txt").write_text("not an image")
    assert len(list_split(DELIVER, deliver_tree, "val")) == 6


def test_no_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*python -m fastseg.data synthetic --out"):
        list_split(DELIVER, tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no sample of split 'train'.*img, hha, event, lidar"):
        list_split(DELIVER, tmp_path, "train")
    with pytest.raises(DataError, match=r"unknown split.*did you mean 'train'"):
        list_split(DELIVER, tmp_path, "trian")


def test_fingerprint_follows_the_samples(deliver_tree: Path) -> None:
    before = list_split(DELIVER, deliver_tree, "val").fingerprint
    assert list_split(DELIVER, deliver_tree, "val", ("lidar",)).fingerprint == before
    for path in deliver_tree.glob("*/fog/val/MAP_3_point1/000002_*"):
        path.unlink()
    assert list_split(DELIVER, deliver_tree, "val").fingerprint != before
