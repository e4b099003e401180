"""MUSES' raw sensors in the camera's image: geometry, motion, encoding."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg.pipelines import get_dataset
from fastseg.pipelines.decode.by_spec import decode_modality
from fastseg.pipelines.decode.images import decode_image
from fastseg.pipelines.decode.muses_raw import Events
from fastseg.pipelines.inspection.display import to_values
from fastseg.pipelines.projection.calibration import Calibration
from fastseg.pipelines.projection.encode import encode_counts, encode_values
from fastseg.pipelines.projection.motion import Twist, compensate
from fastseg.pipelines.projection.raster import spread, winners
from fastseg.pipelines.projection.sensors import (
    Motion,
    event_image,
    lidar_image,
    radar_image,
    radar_points,
)
from tests.support import dataset_trees as trees

SIZE = (108, 192)  # a tenth of the real one: focal length 96, centre (96, 54)
NOW = trees.EXPOSURE / 1e6


def calibration() -> Calibration:
    found = trees.calibration()
    inside, outside = found["intrinsics"], found["extrinsics"]
    return Calibration(
        camera=np.array(inside["rgb"]["K"]),
        event=np.array(inside["event"]["K"]),
        lidar_to_camera=np.array(outside["lidar2rgb"]),
        radar_to_camera=np.array(outside["radar2rgb"]),
        event_to_camera=np.array(outside["event2rgb"]),
        lidar_to_gnss=np.array(outside["lidar2gnss"]),
        radar_to_gnss=np.array(outside["radar2gnss"]),
    )


def points(*rows: tuple[float, ...]) -> np.ndarray:
    """LiDAR points from (front, left, up, intensity[, seconds after the exposure])."""
    return np.array([[*row[:4], 0, NOW + (row[4] if len(row) > 4 else 0)] for row in rows])


def shown(image: np.ndarray) -> dict[tuple[int, int], list[float]]:
    """(row, column) of every pixel that is not empty, with its three values."""
    rows, cols = np.nonzero(image.any(axis=2))
    return {(r, c): image[r, c].tolist() for r, c in zip(rows.tolist(), cols.tolist(), strict=True)}


def test_points_land_where_a_pinhole_sees_them() -> None:
    # column = 96 - 96 left / front, row = 54 - 96 up / front
    cloud = points((10, 0, 0, 7), (10, 1, 0.5, 20), (8, -4, -1, 255))
    image = lidar_image(cloud, calibration(), SIZE, None)
    assert image.dtype == np.float32
    found = shown(image)
    assert set(found) == {(54, 96), (49, 86), (66, 144)}
    np.testing.assert_allclose(found[49, 86], [np.sqrt(100 + 1 + 0.25), 20, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found[66, 144], [9, 255, -1], rtol=1e-6)


def test_what_the_camera_cannot_see_is_left_out() -> None:
    behind = (-10, 1, 0.5, 9)  # a division by its depth would mirror it into the image
    near, aside, above = (0.5, 0, 0, 9), (10, 11, 0, 9), (10, 0, 6, 9)
    image = lidar_image(points(behind, near, aside, above), calibration(), SIZE, None)
    assert not image.any()
    assert not lidar_image(np.empty((0, 6)), calibration(), SIZE, None).any()


def test_the_nearest_return_is_shown_in_any_order() -> None:
    cloud = points((20, 0, 0, 1), (10, 0, 0, 2), (30, 0, 0, 3))
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        image = lidar_image(cloud[order], calibration(), SIZE, None)
        assert shown(image) == {(54, 96): [10, 2, 0]}


def test_enlarged_points_keep_their_channels_together() -> None:
    # the far point is brighter: a maximum per channel would mix the two
    cloud = points((10, 0, 0, 2), (20, -0.25, 0, 200))
    image = lidar_image(cloud, calibration(), SIZE, None, width=2)
    assert shown(image) == {
        **{(row, col): [10, 2, 0] for row in (54, 55) for col in (96, 97)},
        **{(row, 98): pytest.approx([np.hypot(20, 0.25), 200, 0], rel=1e-6) for row in (54, 55)},
    }


@pytest.mark.parametrize(("width", "reach"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 2))])
def test_points_are_as_wide_as_asked(width: int, reach: tuple[int, int]) -> None:
    index = winners(np.array([4 * 9 + 4]), np.array([1.0]), (9, 9), width)
    rows, cols = np.nonzero(index == 0)
    for found in (rows, cols):
        assert (found.min(), found.max()) == (4 - reach[0], 4 + reach[1])
    assert len(rows) == width * width
    counts = np.zeros((9, 9, 3), np.uint8)
    counts[4, 4] = 5
    np.testing.assert_array_equal(spread(counts, width)[..., 0] > 0, index == 0)


def test_points_at_the_border_do_not_come_in_on_the_other_side() -> None:
    index = winners(np.array([0, 80]), np.array([1.0, 1.0]), (9, 9), 4)
    assert (index[:3, :3] == 0).all()
    assert (index[7:, 7:] == 1).all()
    assert np.count_nonzero(index >= 0) == 9 + 4


# --- motion --------------------------------------------------------------------------------------


def test_driving_straight_shifts_points_ahead() -> None:
    # seen 0.1 s late at 10 m/s: at the exposure it was 1 m further ahead
    motion = Motion(Twist(10.0, (0.0, 0.0, 0.0)), NOW)
    image = lidar_image(points((9, 1, 0, 5, 0.1)), calibration(), SIZE, motion)
    ((position, values),) = shown(image).items()
    assert position == (54, 86)
    assert values == pytest.approx([np.hypot(10, 1), 5, 0], abs=1e-5)


def test_turning_right_brings_points_from_the_left() -> None:
    # heading turns clockwise by 0.1 rad within 0.1 s; what is dead ahead then was right before
    motion = Motion(Twist(0.0, (0.0, 0.0, 1.0)), NOW)
    (position,) = shown(lidar_image(points((10, 0, 0, 5, 0.1)), calibration(), SIZE, motion))
    assert position == (54, int(96 + 96 * np.tan(0.1)))


def test_compensation_is_the_limit_of_small_steps() -> None:
    found = calibration().lidar_to_gnss
    twist = Twist(14.0, (0.05, -0.1, 0.6))
    g = np.random.default_rng(0)
    cloud, delays = g.uniform(-30, 30, (50, 3)), g.uniform(-0.1, 0.1, 50)
    truth = cloud @ found[:3, :3].T + found[:3, 3]
    steps, velocity = 20_000, np.array([twist.speed, 0, 0])
    for _ in range(steps):  # the vehicle's frame moves back in time, a little at once
        small = (delays / steps)[:, None]
        truth = truth + small * (np.cross(twist.rates, truth) + velocity)
    truth = (truth - found[:3, 3]) @ np.linalg.inv(found[:3, :3]).T
    np.testing.assert_allclose(compensate(cloud, delays, twist, found), truth, atol=1e-5)
    still = compensate(cloud, delays, Twist(0.0, (0.0, 0.0, 0.0)), found)
    np.testing.assert_allclose(still, cloud, atol=1e-12)


# --- radar ---------------------------------------------------------------------------------------


def sweep(bins: int = 4000) -> np.ndarray:
    empty = trees.radar_sweep("any", bins)
    empty[11:] = 0
    empty[10] = 255
    return empty


def test_radar_columns_turn_to_the_right() -> None:
    polar = sweep()
    xyz, _, seconds = radar_points(polar)
    assert seconds[0] == NOW
    # 110 columns of all bins up to 150 m
    assert len(xyz) == 110 * int(150 / 0.0438)
    polar[10] = 0
    polar[10, [199, 219]] = 1  # straight ahead, and 18 degrees to the right
    xyz, _, _ = radar_points(polar)
    ahead, right = xyz[: len(xyz) // 2], xyz[len(xyz) // 2 :]
    np.testing.assert_allclose(ahead[9], [0.438, 0, -1.62], atol=1e-12)
    angle = np.arctan2(right[:, 1], right[:, 0])
    np.testing.assert_allclose(np.rad2deg(angle), -18)


def test_the_strongest_bin_of_a_pixel_is_shown() -> None:
    polar = sweep()
    polar[10] = 0
    polar[10, 199] = 255
    far = 2283  # 100 m: many bins share a pixel near the horizon
    polar[11 + far : 11 + far + 8, 199] = [3, 4, 90, 5, 6, 7, 8, 9]
    image = radar_image(polar, calibration(), SIZE, None)
    strong = np.argwhere(image[..., 1] == 90)
    assert strong.tolist() == [[int(54 + 96 * 1.62 / (far + 3) / 0.0438), 96]]
    metres = image[tuple(strong[0])][0]
    assert metres == pytest.approx(np.hypot((far + 3) * 0.0438, 1.62), rel=1e-6)
    assert (image[..., 2] == 0).all()


def test_radar_keeps_to_its_limits() -> None:
    image = radar_image(sweep(), calibration(), SIZE, None)
    metres = image[..., 0][image[..., 0] > 0]
    assert metres.min() >= 1
    assert metres.max() <= 150
    assert not image[:54].any()  # everything is on the ground, below the horizon


# --- events --------------------------------------------------------------------------------------


def events(*rows: tuple[int, int, int]) -> Events:
    x, y, p = np.array(rows).reshape(-1, 3).T
    return Events(x, y, np.arange(len(x)), p)


def test_events_are_counted_by_polarity() -> None:
    # same direction in both cameras: (x - 320) / 400 = (column - 96) / 96
    image = event_image(
        events((320, 240, 1), (320, 240, 1), (320, 240, 0), (420, 140, 0)), calibration(), SIZE
    )
    assert image.dtype == np.uint8
    assert shown(image) == {(54, 96): [2, 1, 0], (30, 120): [0, 1, 0]}


def test_counts_stop_at_255_and_edges_do_not_wrap() -> None:
    many = [(320, 240, 1)] * 300
    outside = [(0, 0, 1), (639, 0, 0)]  # row -3.6 and less: would wrap to the bottom
    image = event_image(events(*many, *outside), calibration(), SIZE)
    assert shown(image) == {(54, 96): [255, 0, 0]}
    assert not event_image(events(), calibration(), SIZE).any()


def test_the_event_camera_is_turned_into_the_frame_camera() -> None:
    turned = calibration()
    turn = 0.1  # the event camera looks 0.1 rad to the right of the frame camera
    rotation = np.eye(4)
    rotation[[0, 2], [0, 2]] = np.cos(turn)
    rotation[0, 2], rotation[2, 0] = np.sin(turn), -np.sin(turn)
    object.__setattr__(turned, "event_to_camera", rotation)
    ((position, _),) = shown(event_image(events((320, 240, 1)), turned, SIZE)).items()
    assert position == (54, round(96 + 96 * np.tan(turn)))


# --- files ---------------------------------------------------------------------------------------


def test_encoding_is_that_of_the_sdk(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    values = g.uniform([0, 0, -5], [200, 255, 30], (20, 30, 3)).astype(np.float32)
    values[:10] = 0
    path = tmp_path / "a.png"
    path.write_bytes(encode_values(values))
    codes = decode_image(path.read_bytes(), path, bits=(16,))
    assert (codes[:10] == 15000).all()
    expected = ((values + np.float32(100)) * np.float32(150)).astype(np.uint16)
    np.testing.assert_array_equal(codes, expected[..., ::-1])  # RGB order is height first
    lidar = get_dataset("muses").modalities[2]
    decoded = to_values(lidar, decode_modality([path], get_dataset("muses"), lidar))
    error = values - decoded.transpose(1, 2, 0)
    assert error.min() > -1e-4
    assert error.max() <= 1 / 150 + 1e-4


def test_counts_are_eight_bit_and_reversed() -> None:
    counts = np.zeros((4, 5, 3), np.uint8)
    counts[1, 2] = [7, 9, 0]
    stored = np.array(Image.open(io.BytesIO(encode_counts(counts))))
    assert stored[1, 2].tolist() == [0, 9, 7]
