"""Data sets that TOML files describe: what they become, and what is refused by name."""

import copy
import json

import numpy as np
import pytest

from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.datasets.described.description import differences
from fastseg.pipelines.datasets.described.files import keep, plain_of
from fastseg.pipelines.datasets.described.reading import read_description
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.decode.by_spec import decode_label
from tests.support.dataset_trees import save
from tests.support.own_tree import COLOURS, save_label, scene, write_own

VALUES = {
    "sensors": [
        {"name": "rgb", "files": "rgb/{name}.png", "kind": "camera", "mean": "imagenet"},
        {"name": "thermal", "files": "thermal/{name}.png", "bits": 16, "std": 2},
    ],
    "label": {"files": "labels/{name}.png"},
    "classes": [{"name": "road", "colour": [1, 2, 3]}, {"name": "roof", "ids": [1, 7]}],
    "splits": {"shares": {"train": 0.5, "val": 0.5}},
}
TEXT = """
[[sensors]]
name = "rgb"
files = "rgb/{name}.png"
[[sensors]]
name = "thermal"
files = "thermal/{name}.png"
bits = 16
[label]
files = "labels/{name}.png"
CODING
CLASSES
[splits]
SPLITS
"""


def text(coding="", splits="shares = { train = 0.5, val = 0.5 }", painted=False):
    rows = (
        f'[[classes]]\nname = "c{n}"\n' + (f"colour = {list(colour)}\n" if painted else "")
        for n, colour in enumerate(COLOURS)
    )
    whole = TEXT.replace("CODING", coding).replace("CLASSES", "".join(rows))
    return whole.replace("SPLITS", splits)


@pytest.fixture
def described(tmp_path):
    def write(content):
        path = tmp_path / "mine.toml"
        path.write_text(content, encoding="utf-8")
        return get_dataset(str(path))

    return write


def changed(*place, to):
    """The values with another one at a place; without a value: the key is gone."""
    values = copy.deepcopy(VALUES)
    inside = values
    for key in place[:-1]:
        inside = inside[key]
    if to is None:
        del inside[place[-1]]
    else:
        inside[place[-1]] = to
    return values


REFUSED = {
    "unknown key": (("sensors", 0, "fils"), "x", "unknown key 'fils': did you mean 'files'?"),
    "unknown table": (("sensorz",), [], "unknown key 'sensorz': did you mean 'sensors'?"),
    "missing key": (("label", "files"), None, r"\[label\]: files is missing"),
    "wrong type": (("sensors", 1, "scale"), "big", "scale = 'big'; expected a number"),
    "nan": (("sensors", 1, "offset"), float("nan"), "offset = nan; expected"),
    "bits": (("sensors", 1, "bits"), 12, "sensor 'thermal': bits = 12; expected 8, 16 or"),
    "kind": (("sensors", 0, "kind"), "eye", "kind = 'eye'; expected one of camera, event"),
    "sensor twice": (("sensors", 1, "name"), "rgb", "sensor 'rgb' is there twice, as number 1 and"),
    "std 0": (("sensors", 1, "std"), 0, "std = 0; expected numbers above 0"),
    "outside": (("sensors", 0, "files"), "../x/{name}.png", "a path below --data.root"),
    "no field": (("sensors", 0, "files"), "rgb/a.png", "a field that tells samples apart"),
    "suffix": (("sensors", 0, "files"), "rgb/{name}.tif", "a path that ends with .png"),
    "label jpeg": (("label", "files"), "labels/{name}.jpg", "a path that ends with .png"),
    "other fields": (("label", "files"), "labels/{id}.png", "the fields of 'rgb/{name}.png'"),
    "class twice": (("classes", 1, "name"), "road", "class 'road' is there twice"),
    "colour twice": (("classes", 1, "colour"), [1, 2, 3], r"'roof': colour has \[1, 2, 3\], which"),
    "id twice": (("classes", 1, "ids"), [0], "class 'roof': ids has 0, which 'road' has"),
    "id above 255": (("classes", 1, "ids"), 256, "ids = 256; expected an id from 0 to 255"),
    "colour": (("classes", 0, "colour"), [0, 0, 300], r"expected \[R, G, B\]"),
    "one class": (("classes",), [{"name": "a"}], "for each class, from 2 to 255"),
    "ignored class": (("label", "ignored"), [7], "nothing of a class, but 'roof' has 7"),
    "two ways": (("splits", "folders"), ["a"], "expected one of folders, lists and shares"),
    "too much": (("splits", "shares"), {"a": 0.8, "b": 0.3}, "1 in all at most"),
    "folders": (("splits",), {"folders": ["a"]}, "{split} in the path, as"),
    "list out": (("splits",), {"lists": {"a": "/x.txt"}}, "a path below --data.root"),
    "line": (("splits",), {"lists": {"a": "x"}, "line": "{id}"}, "a text with each of {name} once"),
    "group": (("splits", "group"), "scene", "a field of the paths: name"),
    "condition": (("conditions",), {"weather": ["sun"]}, "unknown key 'weather'"),
}


@pytest.mark.parametrize(("place", "value", "message"), REFUSED.values(), ids=REFUSED)
def test_each_fault_is_one_message(place, value, message):
    with pytest.raises(DataError, match=message) as caught:
        read_description(changed(*place, to=value), "mine.toml", "mine")
    assert str(caught.value).startswith("mine.toml")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_descriptions(described, tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*fastseg.data describe"):
        get_dataset(str(tmp_path / "gone.toml"))
    with pytest.raises(DataError, match=r"is not TOML: .*line 2"):
        described("a = 1\na = 2\n")
    with pytest.raises(DataError, match="no data set of the catalogue"):
        described('name = "nyu"\n' + text())
    with pytest.raises(DataError, match="did you mean 'deliver'"):
        get_dataset("delivr")


def test_the_plain_form_is_read_back_and_says_what_differs(described, tmp_path):
    one = read_description(VALUES, "mine.toml", "mine")
    plain = json.loads(json.dumps(one.plain()))
    assert read_description(plain, "kept", "") == one
    other = read_description(changed("sensors", 1, "std", to=3), "mine.toml", "mine").plain()
    found = differences(plain, other)
    assert found["sensors.1.std"] == ([2.0] * 3, [3.0] * 3)
    assert found.keys() == {"sensors.1.std", "sensors.1.shown"}
    described(text())
    name = str(tmp_path / "mine.toml")
    kept = keep(name)
    spec = get_dataset(name)
    (tmp_path / "mine.toml").unlink()
    assert get_dataset(name, kept) == spec
    assert [m.letter for m in spec.modalities] == ["R", "T"]
    kept["label"]["others"] = "ignored"
    with pytest.raises(DataError, match="not that of its hash"):
        get_dataset(name, kept)
    assert "file" not in plain_of(kept)


@pytest.mark.parametrize("coding", ["ids", "indices", "colours"])
def test_all_codings_give_the_same_labels(described, tmp_path, coding):
    painted = coding == "colours"
    ignored = "\nignored = [0, 0, 0]" * painted
    spec = described(text(f'coding = "{coding}"{ignored}', painted=painted))
    label = scene(3, 20, 30)
    save_label(tmp_path / "a.png", label, coding)
    assert np.array_equal(decode_label(tmp_path / "a.png", spec), label)


def test_a_colour_of_no_class_is_named_or_ignored(described, tmp_path):
    pixels = np.full((4, 6, 3), COLOURS[0], np.uint8)
    pixels[2, 5] = (181, 60, 60)
    path = save(tmp_path / "a.png", pixels)
    coding = 'coding = "colours"'
    with pytest.raises(
        DataError, match=r"\[181, 60, 60\] at row 2, column 5 .*\[180, 60, 60\], c1"
    ):
        decode_label(path, described(text(coding, painted=True)))
    spec = described(text(coding + '\nothers = "ignored"', painted=True))
    assert decode_label(path, spec).ravel().tolist() == [0] * 17 + [255] + [0] * 6


def empty_files(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def everywhere(root, *names):
    empty_files(root, *(f"{f}/{n}.png" for f in ("rgb", "thermal", "labels") for n in names))


def test_shares_depend_on_names_alone(described, tmp_path):
    spec = described(text(splits="shares = { train = 0.7, val = 0.2 }"))
    names = [f"{n:04d}" for n in range(300)]
    everywhere(tmp_path, *names[::2])
    few = {s: set(list_split(spec, tmp_path, s).sample_ids) for s in ("train", "val")}
    everywhere(tmp_path, *names)
    all_ = {s: set(list_split(spec, tmp_path, s).sample_ids) for s in ("train", "val")}
    assert few["train"] == all_["train"] & set(names[::2])
    assert few["val"] == all_["val"] & set(names[::2])
    assert not all_["train"] & all_["val"]
    assert 180 < len(all_["train"]) < 240
    assert 35 < len(all_["val"]) < 85


def test_missing_folders_and_empty_splits_name_their_key(described, tmp_path):
    root = tmp_path / "data"
    empty_files(root, "RGB/1.png", "thermal/1.png")
    with pytest.raises(DataError, match=r"mine.toml, sensor 'rgb': files = .*holds RGB, thermal"):
        list_split(described(text()), root, "train")
    everywhere(root, "1")
    share = described(text(splits="shares = { train = 0.9999999, val = 0.0000001 }"))
    with pytest.raises(DataError, match=r"\[splits\]: shares.val = .*none of 1 samples"):
        list_split(share, root, "val")
    (root / "val.txt").write_text("\n")
    lists = described(text(splits="lists = { val = 'val.txt' }"))
    with pytest.raises(DataError, match=r"\[splits\]: lists.val = 'val.txt', but .*no sample"):
        list_split(lists, root, "val")


def test_the_path_that_says_more_has_the_file(described, tmp_path):
    content = text().replace("labels/{name}", "rgb/{name}_label")
    empty_files(tmp_path, "rgb/7.png", "rgb/7_label.png", "thermal/7.png")
    spec = described(content.replace("train = 0.5, val = 0.5", "train = 1"))
    assert list_split(spec, tmp_path, "train").sample_ids == ("7",)


def test_lists_may_lie_and_look_otherwise(described, tmp_path):
    write_own(tmp_path, counts={"train": 2}, sizes=((8, 12),), splits="none")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/a.txt").write_text("rgb/001.png labels/001.png\n")
    spec = described(text(splits="lists = { train = 'sets/a.txt' }\nline = 'rgb/{name}.png'"))
    assert list_split(spec, tmp_path, "train").sample_ids == ("001",)
