"""``python -m fastseg.data prepare muses``: from the download to what networks read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastseg import data
from fastseg.pipelines import DataConfig, DataError, get_dataset
from fastseg.pipelines.decode import muses_raw as raw
from fastseg.pipelines.decode.images import decode_image
from fastseg.pipelines.inspection.check import check_dataset
from fastseg.pipelines.loaders.dali.loader import dali_import_error
from fastseg.pipelines.projection import (
    PrepareConfig,
    prepare_muses,
    read_calibration,
    read_scenes,
)
from fastseg.pipelines.projection.motion import read_gnss
from fastseg.pipelines.projection.sensors import Motion, event_image, lidar_image, radar_image
from tests.support import dataset_trees as trees

REPO = Path(__file__).parents[3]
SCENE = "train/clear/day/REC0000_frame_000000"


def prepare(root: Path, **options: object):
    return prepare_muses(PrepareConfig(root, **options), progress=False)


def written(root: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted((root / "projected_to_rgb").rglob("*.png"))}


def test_the_download_is_checked(raw_tree: Path) -> None:
    report = check_dataset(get_dataset("muses-raw"), raw_tree, progress=False)
    assert (report.faults, report.modalities) == (
        [],
        ("frame_camera", "event_camera", "lidar", "radar"),
    )
    lidar, events, radar = (
        raw_tree / f"lidar/{SCENE}_lidar.bin",
        raw_tree / f"event_camera/{SCENE}_event_camera.h5",
        raw_tree / f"radar/{SCENE}_radar.png",
    )
    lidar.write_bytes(lidar.read_bytes()[:-11])
    events.write_bytes(events.read_bytes()[:300])
    trees.save(radar, np.zeros((20, 30)))
    (raw_tree / "calib.json").unlink()
    faults = check_dataset(get_dataset("muses-raw"), raw_tree, progress=False).faults
    text = "\n".join(fault.message for fault in faults)
    assert len(faults) == 4
    assert f"{lidar} has 19189 bytes, which is no positive multiple of 48" in text
    assert f"{events} is damaged" in text
    assert f"{radar} is 30 x 20 pixels; expected a polar radar image, 400 columns" in text
    assert f"{raw_tree / 'calib.json'} does not exist. Unpack every archive" in text


def test_from_the_download_to_the_network(
    raw_tree: Path, open_loader: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.main(["prepare", "muses", "--root", str(raw_tree), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"{raw_tree / 'projected_to_rgb'}: 10 scenes, 30 files written, 0 there" in printed
    assert "motion undone in 10" in printed
    assert check_dataset(get_dataset("muses"), raw_tree, progress=False).faults == []

    names = ("event_camera", "lidar", "radar")
    config = DataConfig(
        dataset="muses", root=raw_tree, size=64, modalities=names, eval_batch_size=4, workers=0
    )
    calibration = read_calibration(raw_tree)
    scenes = {str(s.folder / s.name): s for s in read_scenes(raw_tree)}
    for loader in ("torch", "dali") if dali_import_error() is None else ("torch",):
        batch = next(open_loader(replace(config, loader=loader), train=False).batches())
        for position, sample in enumerate(batch.sample_ids):
            scene = scenes[sample]
            motion = Motion(read_gnss(raw_tree / scene.gnss), scene.exposure_s)
            name = scene.name
            events = raw.Events(**trees.event_arrays(name))
            late = raw.Events(*(a[events.t >= events.t.max() - 30_000] for a in events))
            truth = (
                event_image(late, calibration, trees.FRAME),
                lidar_image(trees.lidar_points(name), calibration, trees.FRAME, motion),
                radar_image(trees.radar_sweep(name), calibration, trees.FRAME, motion),
            )
            assert all(image.any() for image in truth)
            for m, image in enumerate(truth):
                spec = get_dataset("muses").select([names[m]])[0]
                fed = batch.images[m, position].permute(1, 2, 0).double().numpy()
                np.testing.assert_allclose(fed * spec.std + spec.mean, image, atol=1 / 150 + 1e-4)


def test_motion_matters_and_can_be_left_alone(raw_tree: Path, tmp_path: Path) -> None:
    assert prepare(raw_tree).moved == 10
    still = tmp_path / "still"
    assert prepare(raw_tree, out=still, motion=False).moved == 0
    lidar = Path(f"lidar/{SCENE}_lidar.png")
    moved = (raw_tree / "projected_to_rgb" / lidar).read_bytes()
    assert (still / lidar).read_bytes() != moved
    # without a GNSS file there is nothing to undo
    shutil.rmtree(raw_tree / "gnss")
    assert prepare(raw_tree, out=tmp_path / "none").moved == 0
    assert (tmp_path / "none" / lidar).read_bytes() == (still / lidar).read_bytes()


def test_what_is_there_is_kept(raw_tree: Path) -> None:
    assert prepare(raw_tree, splits=("val",)).written == 12
    before = written(raw_tree)
    lost = sorted(before)[5]
    lost.unlink()
    stamps = {p: p.stat().st_mtime_ns for p in before if p != lost}
    report = prepare(raw_tree)
    assert (report.scenes, report.written, report.kept) == (10, 18 + 1, 11)
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert lost.read_bytes() == before[lost]
    assert not list(raw_tree.rglob(".*.partial"))


def test_sensors_and_widths_can_be_chosen(raw_tree: Path) -> None:
    shutil.rmtree(raw_tree / "radar")
    with pytest.raises(DataError, match=r"radar does not exist.*leave the sensor out"):
        prepare(raw_tree)
    assert not (raw_tree / "projected_to_rgb").exists()
    prepare(raw_tree, sensors=("lidar",), width={"lidar": 3})
    path = raw_tree / f"projected_to_rgb/lidar/{SCENE}_lidar.png"
    wide = decode_image(path.read_bytes(), path, bits=(16,))
    shutil.rmtree(raw_tree / "projected_to_rgb")
    prepare(raw_tree, sensors=("lidar",))
    thin = decode_image(path.read_bytes(), path, bits=(16,))
    assert (wide[..., 2] > 15000).sum() > 4 * (thin[..., 2] > 15000).sum()
    with pytest.raises(ValueError, match=r"width must be .* from 1 to 15, got \{'lidar': 0\}"):
        PrepareConfig(raw_tree, width={"lidar": 0})
    with pytest.raises(DataError, match="did you mean 'lidar'"):
        PrepareConfig(raw_tree, sensors=("lidra",))


def test_other_settings_and_foreign_files_are_refused(raw_tree: Path, tmp_path: Path) -> None:
    prepare(raw_tree, sensors=("lidar",))
    before = written(raw_tree)
    with pytest.raises(DataError, match=r"other settings \(motion is True, asked for False\)"):
        prepare(raw_tree, motion=False)
    foreign = trees.save(tmp_path / "out/lidar/a.png", np.zeros((4, 4)))
    with pytest.raises(DataError, match="did not write") as caught:
        prepare(raw_tree, out=tmp_path / "out")
    assert str(foreign) in str(caught.value)
    assert written(raw_tree) == before


def spoil_meta(root: Path, change: Callable[[dict], object]) -> None:
    meta = json.loads((root / "meta.json").read_text())
    change(meta["REC0000_frame_000000"])
    (root / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "meta.json").unlink(), r"cannot read .*meta\.json: No such file"),
        (lambda r: (r / "meta.json").write_text("[1]"), r"meta\.json is no JSON object"),
        (lambda r: (r / "calib.json").write_text("{"), r"calib\.json is not JSON"),
        (
            lambda r: (r / "calib.json").write_text('{"intrinsics": {"rgb": {"K": [[1, 2]]}}}'),
            r"calib\.json: intrinsics\.rgb\.K is not a 3 x 3 matrix",
        ),
        (
            lambda r: spoil_meta(r, lambda e: e.pop("path_to_lidar")),
            r"scene REC0000_frame_000000 has no path_to_lidar",
        ),
        (
            lambda r: spoil_meta(r, lambda e: e.update(path_to_radar="../../etc/x.png")),
            r"path_to_radar of scene REC0000_frame_000000 leaves the data set",
        ),
        (
            lambda r: spoil_meta(r, lambda e: e.update(path_to_gnss="/etc/passwd")),
            r"path_to_gnss of scene REC0000_frame_000000 leaves the data set \(/etc/passwd\)",
        ),
        (
            lambda r: spoil_meta(
                r, lambda e: e.update(frame_camera_exposure_start_timestamp_us="soon")
            ),
            r"exposure of scene REC0000_frame_000000 is no number.*'soon'",
        ),
    ],
)
def test_a_bad_description_ends_before_anything_is_written(
    raw_tree: Path, capsys: pytest.CaptureFixture[str], spoil: Callable, message: str
) -> None:
    spoil(raw_tree)
    with pytest.raises(DataError, match=message):
        prepare(raw_tree)
    assert data.main(["prepare", "muses", "--root", str(raw_tree)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (raw_tree / "projected_to_rgb").exists()


def test_faults_of_scenes_do_not_stop_the_others(
    raw_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{folder}/{scene}" for folder, scene in trees.muses_scenes()]
    lidar = raw_tree / f"lidar/{names[0]}_lidar.bin"
    lidar.write_bytes(lidar.read_bytes()[:1000])
    nan = raw_tree / f"lidar/{names[1]}_lidar.bin"
    cloud = trees.lidar_points("x")
    cloud[3:5, 0] = np.nan
    trees.save(nan, cloud)
    camera = raw_tree / f"frame_camera/{names[2]}_frame_camera.png"
    camera.unlink()
    gnss = raw_tree / f"gnss/{names[3]}_gnss.txt"
    gnss.write_text("1 2 3\n")
    events = {i: raw_tree / f"event_camera/{names[i]}_event_camera.h5" for i in (4, 5, 6)}
    arrays = trees.event_arrays("x")
    trees.write_events(events[4], {**arrays, "p": arrays["p"] + 1})
    trees.write_events(events[5], {k: v for k, v in arrays.items() if k != "t"})
    trees.write_events(events[6], {**arrays, "x": arrays["x"][:7]})
    radar = raw_tree / f"radar/{names[7]}_radar.png"
    radar.unlink()
    command = ["prepare", "muses", "--root", str(raw_tree), "--workers", "1"]
    assert data.main(command) == 2
    printed = capsys.readouterr().out
    for path, words in (
        (lidar, "has 1000 bytes"),
        (nan, "2 of 400 points"),
        (camera, "No such file"),
        (gnss, "3 numbers in its first line, expected 28"),
        (events[4], "events/p has values from 1 to 2"),
        (events[5], "has no array events/t"),
        (events[6], "expected four vectors of one length"),
        (radar, "No such file"),
    ):
        assert any(str(path) in line and words in line for line in printed.splitlines()), words
    assert "8 faults; the same command continues" in printed
    # two scenes lack all three files, six lack one
    assert len(written(raw_tree)) == 30 - 2 * 3 - 6
    trees.write_muses_raw(raw_tree)
    assert data.main(command) == 0
    assert "12 files written, 18 there before" in capsys.readouterr().out


@pytest.mark.fault("F12")
def test_an_empty_recording_is_an_empty_image(raw_tree: Path) -> None:
    path = raw_tree / f"event_camera/{SCENE}_event_camera.h5"
    trees.write_events(path, {k: v[:0] for k, v in trees.event_arrays("x").items()})
    assert prepare(raw_tree, sensors=("event_camera",)).faults == []
    image = raw_tree / f"projected_to_rgb/event_camera/{SCENE}_event_camera.png"
    assert not decode_image(image.read_bytes(), image).any()


def test_without_h5py_the_remedy_is_named(raw_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"h5py cannot be imported.*\.\[muses\]"):
        prepare(raw_tree)
    assert prepare(raw_tree, sensors=("lidar", "radar")).faults == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_only_whole_files(raw_tree: Path, stop: signal.Signals) -> None:
    for path in raw_tree.glob("radar/val/**/*.png"):
        trees.save(path, trees.radar_sweep(path.name, bins=7536))  # as long as the real ones
    command = [sys.executable, "-m", "fastseg.data", "prepare", "muses", "--root", str(raw_tree)]
    process = subprocess.Popen(
        [*command, "--workers", "1", "--splits", "val"],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stderr=subprocess.PIPE,
        text=True,
        # a suite that was started in the background ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not written(raw_tree) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(stop)
    _, messages = process.communicate(timeout=30)
    found = written(raw_tree)
    assert 0 < len(found) < 12
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert messages.rstrip().endswith("interrupted; the same command continues")
    for path, content in found.items():
        decode_image(content, path, bits=(8,) if "event_camera" in path.name else (16,))
    report = prepare(raw_tree, splits=("val",))
    assert (report.kept, report.written) == (len(found), 12 - len(found))
    assert all(path.read_bytes() == content for path, content in found.items())


def write_with_filter(path: Path, number: int, name: bytes) -> None:
    """Event arrays that only a filter can unpack which nobody has."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in trees.event_arrays("any", 100).items():
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_chunk((100,))
            # optional to the writer; to the reader, the chunk says that it was applied
            settings.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
            space, kind = h5py.h5s.create_simple((100,)), h5py.h5t.py_create(values.dtype)
            group = file.require_group("events")
            made = h5py.h5d.create(group.id, key.encode(), kind, space, settings)
            made.write_direct_chunk((0,), name, filter_mask=0)


def test_an_absent_filter_is_named_with_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "events.h5"
    write_with_filter(path, 499, b"packed")
    with pytest.raises(DataError, match=r"HDF5 filter .*\(499\).*pip install --upgrade hdf5plugin"):
        raw.read_events(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"is damaged or no HDF5 file .*fetch this file again"):
        raw.read_events(path)


@pytest.mark.parametrize("filter_name", ["Blosc", "Blosc2", "Zstd", "LZ4"])
def test_published_filters_are_read_with_hdf5plugin(tmp_path: Path, filter_name: str) -> None:
    h5py = pytest.importorskip("h5py")
    hdf5plugin = pytest.importorskip("hdf5plugin")
    path, arrays = tmp_path / "events.h5", trees.event_arrays("any")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            packing = getattr(hdf5plugin, filter_name)()
            file.create_dataset(f"events/{name}", data=values, chunks=(500,), **packing)
    events = raw.read_events(path)
    for name, values in arrays.items():
        np.testing.assert_array_equal(getattr(events, name), values)
