"""Targets: a file of each kind, its seeds, and what its reader may make of any bytes.

A target returns True if the bytes were read, and False if they were refused by an error of
fastseg's. It raises AssertionError if what was read is wrong; any other exception is a fault, too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fastseg.config.files import read_config_file
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import from_dict, to_dict
from fastseg.errors import ConfigError
from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.datasets.described.files import read_file
from fastseg.pipelines.datasets.described.reading import read_description
from fastseg.pipelines.datasets.list_files import read_list
from fastseg.pipelines.decode.arrays import read_array
from fastseg.pipelines.decode.headers import image_size
from fastseg.pipelines.decode.images import decode_ids, decode_image
from fastseg.pipelines.projection.calibration import read_calibration
from fastseg.pipelines.tools.toml_files import toml_values
from fastseg.prediction.listed_files import of_list
from fastseg.report.details import read_details
from fastseg.report.metrics_log import MetricsLog
from fastseg.report.results import read_results
from tests.support.dataset_trees import calibration, png


class Target(NamedTuple):
    """A kind of file.

    Attributes:
        seeds: sound files.
        read: true if the bytes were read; see above.
    """

    seeds: list[bytes]
    read: Callable[[bytes, Path], bool]


def encoded(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG", **more: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode:
        image = image.convert(mode)
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def _images() -> list[bytes]:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    grey, deep = rgb[..., 0], rgb[..., 0].astype(np.uint16) * 251
    return [
        *(encoded(rgb), encoded(rgb, "RGBA"), encoded(grey), encoded(rgb, "LA"), encoded(deep)),
        *(encoded(rgb, "1"), encoded(rgb, kind="JPEG"), encoded(rgb, optimize=True)),
        indexed(),
        png(np.stack([deep] * 3, axis=-1)),
    ]


def indexed() -> bytes:
    """A palette PNG."""
    image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) % 6, "P")
    image.putpalette(bytes(range(18)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_image(data: bytes, folder: Path) -> bool:
    """Images of 8 and 16 bits: pixels are Pillow's."""
    path, accepted = folder / "image.png", False
    for bits in ((8,), (16,), (8, 16)):
        try:
            found = decode_image(data, path, bits=bits)
        except DataError:
            continue
        accepted = True
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I"):
                wanted = np.repeat(np.asarray(image).astype(np.uint16)[:, :, None], 3, axis=2)
            else:
                wanted = np.asarray(image.convert("RGB"))
        if bits != (8,) and data[24] == 16 and wanted.dtype == np.uint8:
            found = found >> 8
        elif bits != (8,) and wanted.dtype == np.uint8:
            wanted = wanted.astype(np.uint16) * 257
        assert np.array_equal(found, wanted)
        path.write_bytes(data)
        assert image_size(path, bits=bits) == found.shape[:2]
    return accepted


def read_label(data: bytes, folder: Path) -> bool:
    """Labels: values are those of Pillow's first channel."""
    accepted = False
    for red_alone in (False, True):
        for palette in (False, True):
            try:
                found = decode_ids(data, folder / "label.png", red_alone=red_alone, palette=palette)
            except DataError:
                continue
            accepted = True
            with Image.open(io.BytesIO(data)) as image:
                assert image.format == "PNG"
                assert image.mode != "P" or palette
                assert np.array_equal(found, np.asarray(image.getchannel(0)))
    return accepted


def _arrays() -> list[bytes]:
    found = []
    for values in (np.arange(12, dtype=np.float32).reshape(3, 4), np.ones((2, 3, 2), np.uint16)):
        for save in (np.save, np.savez, np.savez_compressed):
            buffer = io.BytesIO()
            save(buffer, values)
            found.append(buffer.getvalue())
    return found


def read_npy(data: bytes, folder: Path) -> bool:
    """Arrays: values are NumPy's."""
    try:
        found = read_array(data, folder / "array.npy")
    except DataError:
        return False
    wanted = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(wanted, np.ndarray):
        (name,) = wanted.files
        wanted = wanted[name]
    assert np.array_equal(found, wanted.astype(np.float32).reshape(found.shape))
    return True


DESCRIPTION = b"""
name = "own"
[[sensors]]
name = "rgb"
files = "rgb/{split}/{name}.png"
kind = "camera"
mean = "imagenet"
[[sensors]]
name = "thermal"
files = "thermal/{split}/{name}.png"
bits = 16
mean = 3e4
std = [1, 2.5, 1e3]
[label]
files = "labels/{split}/{name}.png"
ignored = [255, 6]
[[classes]]
name = "road"
colour = [1, 2, 3]
[[classes]]
name = "roof"
ids = [7, 8]
[splits]
folders = { train = "train", val = "val" }
[conditions]
name = ["fog", "rain"]
"""
_WHOLE = DESCRIPTION.replace(b"{split}", b"{weather}")
_FOLDERS = b'folders = { train = "train", val = "val" }'
DESCRIPTION_OF_SHARES = _WHOLE.replace(_FOLDERS, b"shares = { train = 0.75, val = 0.25 }")
DESCRIPTION_OF_LISTS = _WHOLE.replace(
    _FOLDERS, b'lists = { train = "train.txt", val = "lists/val.txt" }'
)


def read_toml(data: bytes, folder: Path) -> bool:
    """Descriptions of data sets: their plain form says the same, and the file's plain values."""
    path = folder / "own.toml"
    path.write_bytes(data)
    try:
        found = read_file(str(path))
        get_dataset(str(path))
    except DataError:
        return False
    plain = found.plain()
    assert read_description(json.loads(json.dumps(plain)), "again", "own") == found
    values = toml_values(data.decode("utf-8-sig").replace("\r\n", "\n"))
    assert [s.name for s in found.sensors] == [s["name"] for s in values["sensors"]]
    assert [c.name for c in found.classes] == [c["name"] for c in values["classes"]]
    for text in (found.label.files, *found.splits.lists.values()):
        assert ".." not in text.split("/")
        assert not text.startswith("/")
    return True


def config_target(suffix: str) -> Callable[[bytes, Path], bool]:
    """Config files of a notation: what was read is what the config says."""

    def read(data: bytes, folder: Path) -> bool:
        path = folder / f"config{suffix}"
        path.write_bytes(data)
        try:
            config = read_config_file(path)
        except ConfigError:
            return False
        values = to_dict(config)
        assert to_dict(from_dict(TrainConfig, json.loads(json.dumps(values)))) == values
        return True

    return read


LIST = b"fog/0001\nfog/0002\n\nrain/0003  second column\n"


def read_split_list(data: bytes, folder: Path) -> bool:
    """Lists of splits: samples are the first words of its lines, below the root."""
    (folder / "own.toml").write_bytes(DESCRIPTION_OF_LISTS)
    (folder / "train.txt").write_bytes(data)
    spec = get_dataset(str(folder / "own.toml"))
    try:
        found = read_list(spec, folder, "train")
    except DataError:
        return False
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    assert found == [line.split()[0] for line in text.split("\n") if line.strip()]
    assert not any({"..", "."} & set(name.split("/")) for name in found)
    return True


CSV = b'name,rgb,thermal\nnight/1,a.png,b.png\n,c.png,\nlast,,"d, e.png"\n'
TSV = b"rgb\tthermal\nx/a.png\tx/b.png\n/abs/c.png\t\n"


def read_samples(data: bytes, folder: Path) -> bool:
    """Lists of samples to predict: cells are those of the csv module, names lead nowhere else."""
    (folder / "own.toml").write_bytes(DESCRIPTION)
    path = folder / "list.csv"
    path.write_bytes(data)
    modalities = get_dataset(str(folder / "own.toml")).modalities
    try:
        found = of_list(path, modalities, strict=False)
    except DataError:
        return False
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    tabs = "\t" in text.splitlines()[0]
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ","))
    head, *rows = [row for row in rows if any(cell.strip() for cell in row)]
    head = [cell.strip() for cell in head]
    wanted = [
        {n: folder / c.strip() for n, c in zip(head, row, strict=True) if c.strip() and n != "name"}
        for row in rows
    ]
    assert [{n: files[0] for n, files in sample.files.items()} for sample in found] == wanted
    for sample in found:
        assert not sample.name.startswith("/")
        assert ".." not in sample.name.split("/")
    return True


def read_calib(data: bytes, folder: Path) -> bool:
    """Calibrations: the camera's matrix is that of the file."""
    (folder / "calib.json").write_bytes(data)
    try:
        found = read_calibration(folder)
    except DataError:
        return False
    wanted = json.loads(data.decode("utf-8-sig"))["intrinsics"]["rgb"]["K"]
    assert found.camera.tolist() == wanted
    return True


METRICS = (
    b'{"kind": "train", "stage": "teacher", "step": 5, "loss": 1.25, "lr": 1e-3}\n'
    b'{"kind": "eval", "stage": "teacher", "step": 5, "subset": "RDEL", "miou_all": null}\n'
)


def read_metrics(data: bytes, folder: Path) -> bool:
    """Logs: rows are the lines that are rows, and all others stay aside."""
    path = folder / "metrics.jsonl"
    path.write_bytes(data)
    log = MetricsLog(path)
    rows = log.rows()
    wanted = []
    for line in data.splitlines():
        try:
            wanted.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    for row in rows:
        assert repr(row) in map(repr, wanted)
    log.rewind("teacher", 4)
    assert all(row["stage"] != "teacher" or row["step"] <= 4 for row in log.rows())
    return bool(rows)


RESULTS = (
    b"model,subset,corruption,miou_all,miou_present,road,sky\n"
    b"teacher,RD,none,12.5000,25.0000,50.0000,\nteacher,Mean,none,12.5,25,50,\n"
)
DETAILS = b"table,row,column,value\nspeed,a,x,1.0000\nspeed,a,y,\nspeed,b,x,2\nspeed,b,y,3\n"


def read_scores(data: bytes, folder: Path) -> bool:
    """Scores: numbers are those of the cells."""
    path = folder / "results.csv"
    path.write_bytes(data)
    try:
        found, classes = read_results(path)
    except ValueError:
        return False
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    rows = [row for row in rows[1:] if row[1] != "Mean"]
    assert len(found) == len(rows)
    for result, row in zip(found, rows, strict=True):
        assert (result.model, result.subset) == tuple(row[:2])
        cells = row[len(row) - len(classes) - 2 :]
        for value, cell in zip(
            (result.miou_all, result.miou_present, *result.iou), cells, strict=True
        ):
            assert value == float(cell) / 100 if cell else value != value
    return True


def read_tables(data: bytes, folder: Path) -> bool:
    """Tables of a page: as many numbers as cells."""
    path = folder / "details.csv"
    path.write_bytes(data)
    try:
        tables = read_details(path)
    except ValueError:
        return False
    rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))[1:]
    kept = {(r[0], r[1], r[2]) for r in rows}
    assert sum(len(values) for t in tables for values in t.rows.values()) == len(kept) == len(rows)
    return True


def configs() -> dict[str, list[bytes]]:
    """A config in each notation, and a file over a preset."""
    from fastseg.config.notations import render
    from fastseg.config.presets.registry import get_preset

    whole = to_dict(get_preset("debug"))
    short = {"preset": "debug", "seed": 3, "data": {"size": 64, "root": "~/x"}, "name": "a"}
    return {
        kind: [render(short, kind).encode(), render(whole, kind).encode()]
        for kind in ("toml", "yaml", "json")
    }


def targets() -> dict[str, Target]:
    """Every kind of file that is read without a run."""
    texts = configs()
    images = _images()
    aliases = b"preset: debug\ndata: &d\n  size: 64\nstages:\n  teacher: {steps: 3}\n"
    return {
        "image": Target(images, read_image),
        "label": Target(images, read_label),
        "array": Target(_arrays(), read_npy),
        "description": Target(
            [DESCRIPTION, DESCRIPTION_OF_SHARES, DESCRIPTION_OF_LISTS], read_toml
        ),
        "config.toml": Target(texts["toml"], config_target(".toml")),
        "config.yaml": Target([*texts["yaml"], aliases], config_target(".yaml")),
        "config.json": Target(texts["json"], config_target(".json")),
        "split list": Target([LIST], read_split_list),
        "list of samples": Target([CSV, TSV], read_samples),
        "calibration": Target([json.dumps(calibration()).encode()], read_calib),
        "metrics": Target([METRICS], read_metrics),
        "results": Target([RESULTS], read_scores),
        "details": Target([DETAILS], read_tables),
    }
