"""What the synthetic frames show: geometry, sensors, weather, class balance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastseg.pipelines import get_dataset
from fastseg.pipelines.synthetic.camera import expose
from fastseg.pipelines.synthetic.catalogue import CASES, CLASS_ID, CONDITIONS, WEATHER
from fastseg.pipelines.synthetic.config import SyntheticConfig
from fastseg.pipelines.synthetic.frame import build_world, render_frame
from fastseg.pipelines.synthetic.plan import Frame, plan
from fastseg.pipelines.synthetic.render import CAMERA_HEIGHT, EGO_STEP, FAR, HORIZON, cast
from fastseg.pipelines.synthetic.rng import stream
from fastseg.pipelines.synthetic.sensors import disparity_depth, lidar
from fastseg.pipelines.synthetic.shade import surface
from fastseg.pipelines.synthetic.world import Holes, World

CONFIG = SyntheticConfig(Path("unused"), size=128)
FRAME = Frame("train", "sun", 1, 1, "", 100000)


@pytest.fixture(scope="module")
def samples():
    frames = plan("train", 60)
    return frames, [render_frame(frame, CONFIG) for frame in frames]


def test_classes_are_delivers():
    assert tuple(CLASS_ID) == tuple(get_dataset("deliver").classes)


def test_box_appears_where_it_projects():
    world = World("sun")
    world.patch("Road", (-900.0, 900.0), (0.0, 900.0))
    world.solid("Cars", 0.0, 8.0, (2.0, 1.0, 4.0))
    view = cast(world, 128)
    tables = world.tables()
    cars = tables.class_id[view.primitive] == CLASS_ID["Cars"]
    focal, row = 64, HORIZON * 128
    front = cars & np.isclose(view.depth, 8.0)
    rows, columns = np.nonzero(front)
    # the front face: 2 m wide, its feet on the ground 2.4 m below the horizon
    assert abs(columns.min() - (64 - focal / 8)) <= 1
    assert abs(columns.max() - (64 + focal / 8)) <= 1
    assert abs(rows.max() + 0.5 - (row + focal * CAMERA_HEIGHT / 8)) <= 1
    # the ground below: depth = f h / (v - horizon)
    bottom = focal * CAMERA_HEIGHT / (127.5 - row)
    np.testing.assert_allclose(view.depth[127], bottom, rtol=1e-4)
    assert (view.depth[0] == FAR).all()
    assert (tables.class_id[view.primitive[0]] == CLASS_ID["Sky"]).all()


def test_ellipsoid_depth_and_normal():
    world = World("sun")
    world.solid("Vegetation", 0.0, 6.0, (4.0, 4.0, 4.0), base=CAMERA_HEIGHT - 2, round=True)
    view = cast(world, 128)
    row = round(HORIZON * 128)
    assert view.depth[row, 64] == pytest.approx(6.0, abs=0.02)
    normal = surface(view, world.tables()).normal[row, 64]
    np.testing.assert_allclose(normal, [0, 0, -1], atol=0.05)


def test_label_covers_the_gaps_of_a_fence():
    world = World("sun")
    world.solid("Fence", 0.0, 5.0, (6.0, 3.0, 0.3), holes=Holes.PICKETS)
    view = cast(world, 128)
    labelled, solid = view.label > 0, view.primitive > 0
    assert (labelled & ~solid).sum() > 0.2 * labelled.sum()
    assert not (solid & ~labelled).any()


def test_nearer_solid_hides_farther_in_any_order():
    views = []
    for places in ((4.0, 9.0), (9.0, 4.0)):
        world = World("sun")
        for z in places:
            world.solid("Static", 0.0, z, (3.0, 3.0, 1.0))
        views.append(cast(world, 96).depth)
    np.testing.assert_array_equal(*views)


def test_ego_motion_brings_the_world_nearer():
    world = World("sun")
    world.solid("Wall", 0.0, 10.0, (40.0, 20.0, 1.0))
    row = round(HORIZON * 128) - 1
    first, second = (cast(world, 128, time).depth[row, 64] for time in (0, 1))
    assert first - second == pytest.approx(EGO_STEP)


def test_formats(samples):
    spec = {"img": (3, 4), "hha": (3,), "event": (3,), "lidar": (3,), "semantic": (4,)}
    shapes = set()
    for frame, images in zip(*samples, strict=True):
        for folder, channels in spec.items():
            side = 63 if folder == "event" and frame.case == "eventlowres" else 128
            assert images[folder].shape[:2] == (side, side)
            assert images[folder].shape[2] in channels
            assert images[folder].dtype == np.uint8
        shapes.add(images["img"].shape[2])
        assert images["depth"].shape == (128, 128)
        event, label = images["event"], images["semantic"]
        assert set(np.unique(event)) <= {0, 255}
        assert not event[..., 1].any()
        assert not (event[..., 0] & event[..., 2]).any()
        assert set(np.unique(label[..., 0])) <= {*range(26), 255}
        assert (label[..., 3] == 255).all()
        # a reader of the wrong channel must notice
        assert len(np.unique(label[..., 1])) > 200
    assert shapes == {3, 4}


def test_every_class_is_large_and_frequent_enough(samples):
    labels = np.stack([images["semantic"][..., 0] for images in samples[1]])
    ids = np.arange(1, 26)
    share = np.array([(labels == i).mean() for i in ids])
    present = np.array([(labels == i).any((1, 2)).mean() for i in ids])
    names = np.array(tuple(CLASS_ID))
    assert (share > 0.003).all(), names[share <= 0.003]
    assert (present > 0.3).all(), names[present <= 0.3]
    assert share.max() < 0.3
    assert 0.001 < (labels == 0).mean() < 0.01
    assert (labels == 255).any()


def test_sensor_statistics(samples):
    images = samples[1]
    events = [(i["event"][..., 0] > 0).mean() for i in images]
    darker = [(i["event"][..., 2] > 0).mean() for i in images]
    assert 0.05 < np.mean(events) < 0.09
    assert 0.05 < np.mean(darker) < 0.09
    coverage = np.mean([i["lidar"].any(-1).mean() for i in images])
    assert 0.03 < coverage < 0.10
    grey = np.stack([i["depth"] for i in images])
    assert 90 < grey.mean() < 140
    assert 75 < grey.std() < 140


def test_night_hurts_the_camera_alone(samples):
    def mean(folder, condition):
        pairs = zip(*samples, strict=True)
        return np.mean([i[folder][..., :3].mean() for f, i in pairs if f.condition == condition])

    assert mean("img", "night") < 0.35 * mean("img", "cloud")
    for folder in ("hha", "lidar"):
        assert mean(folder, "night") == pytest.approx(mean(folder, "cloud"), rel=0.25)


def test_lidar_misses_water_and_knows_reflectivity():
    hits = {}
    for name in ("Road", "Water", "RailTrack"):
        world = World("sun")
        world.patch(name, (-900.0, 900.0), (0.0, 900.0))
        view, tables = cast(world, 128), world.tables()
        args = view, surface(view, tables), tables, WEATHER["sun"], stream("test")
        hits[name] = lidar(*args, mode="rich", jitter=False)
    assert not hits["Water"].any()
    seen = hits["RailTrack"].any(-1) & hits["Road"].any(-1)
    assert hits["RailTrack"][seen, 1].min() > 2 * hits["Road"][seen, 1].max()


def test_grey_lidar_is_metres():
    world = build_world(FRAME, 0)
    view, tables = cast(world, 128), world.tables()
    args = view, surface(view, tables), tables, WEATHER["sun"], stream("test")
    image = lidar(*args, mode="grey", jitter=False)
    assert image.max() <= 100
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    hit = image[..., 0] > 0
    # the range is at least the depth along the axis, up to noise and rounding
    assert (image[hit, 0] >= np.minimum(view.depth[hit], 100) - 1).all()


def test_lidar_jitter_moves_points():
    world = build_world(FRAME, 0)
    view, tables = cast(world, 128), world.tables()
    sweeps = [
        lidar(
            *(view, surface(view, tables), tables, WEATHER["sun"], stream("test")),
            mode="rich",
            jitter=jitter,
        )
        for jitter in (False, True)
    ]
    assert (sweeps[0].any(-1) != sweeps[1].any(-1)).mean() > 0.02


def test_depth_error_grows_with_distance_and_darkness():
    view = cast(build_world(FRAME, 0), 128)
    near, far = (view.depth < 8), (view.depth > 25) & (view.depth < 60)

    def error(condition, mask):
        measured = disparity_depth(view, WEATHER[condition], stream("test"))
        return np.abs(measured - view.depth)[mask].mean()

    assert error("sun", far) > 8 * error("sun", near)
    assert error("night", near) > 2 * error("sun", near)


@pytest.mark.parametrize(
    ("case", "low", "high"), [("overexposure", 200, 256), ("underexposure", 0, 90)]
)
def test_exposure_failures(case, low, high):
    view = cast(build_world(FRAME, 0), 96)
    radiance = np.full((96, 96, 3), 0.3, np.float32)
    image = expose(radiance, view, WEATHER["sun"], stream("test"), condition="sun", case=case)
    assert low <= image.mean() < high


def test_motion_blur_smooths():
    world = build_world(FRAME, 0)
    view, tables = cast(world, 128), world.tables()
    radiance = tables.albedo[view.primitive]
    sharp, blurred = (
        expose(radiance, view, WEATHER["sun"], stream("test"), condition="sun", case=case)
        for case in ("", "motionblur")
    )
    edges = [np.abs(np.diff(i.astype(float), axis=1)).mean() for i in (sharp, blurred)]
    assert edges[1] < 0.92 * edges[0]


def test_a_frame_is_a_function_of_its_key():
    first, again = render_frame(FRAME, CONFIG), render_frame(FRAME, CONFIG)
    reseeded = render_frame(FRAME, replace(CONFIG, seed=1))
    for folder in first:
        np.testing.assert_array_equal(first[folder], again[folder])
        assert (first[folder] != reseeded[folder]).any()


@pytest.mark.parametrize("size", [64, 97, 256])
def test_classes_do_not_depend_on_the_size(size):
    shares = []
    for side in (128, size):
        label = render_frame(FRAME, replace(CONFIG, size=side))["semantic"][..., 0]
        shares.append(np.bincount(label.ravel(), minlength=26)[1:26] / label.size)
    np.testing.assert_allclose(shares[0], shares[1], atol=0.02)


@pytest.mark.parametrize("count", [20, 150])
def test_plan_is_even(count):
    frames = plan("val", count)
    assert len({frame.path("img") for frame in frames}) == len(frames) == count
    per_condition = [sum(f.condition == c for f in frames) for c in CONDITIONS]
    per_case = [sum(f.case == c for f in frames) for c in CASES]
    assert max(per_condition) - min(per_condition) <= 1
    assert max(per_case) - min(per_case) <= 1
    assert sum(per_case) == pytest.approx(0.35 * count, abs=1)


def test_plan_repeats_the_published_counts():
    frames = plan("val", 2005)
    assert [sum(f.condition == c for f in frames) for c in CONDITIONS] == [398, 400, 410, 398, 399]
    assert sum(bool(f.case) for f in frames) == 707
    scenes = {}
    for frame in frames:
        scenes.setdefault((frame.condition, frame.folder), []).append(frame)
    assert min(map(len, scenes.values())) >= 4
    # base names repeat between scenes, as in the published set
    assert len({f.number for f in frames}) < len(frames) / 10


def test_splits_share_no_map():
    maps = [{f.map for f in plan(split, 100)} for split in ("train", "val", "test")]
    assert len(set.union(*maps)) == sum(map(len, maps))
    assert plan("train", 0) == []
