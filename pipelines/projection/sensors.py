"""Each sensor's measurements as an image ``[H, W, 3]`` of the frame camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..decode.muses_raw import AZIMUTHS, POLAR_HEADER, Events
from .calibration import Calibration, Matrix
from .motion import Twist, compensate
from .raster import Size, project, spread, winners

EVENT_WINDOW_US = 30_000
"""Events of so many microseconds before the last one count."""
NEAREST = 1.0
"""Metres; nearer points belong to the vehicle."""
RADAR_FARTHEST = 150.0
"""Metres."""
RANGE_BIN = 0.0438
"""Metres per radar bin; the first one ends here."""
RADAR_HEIGHT = -1.62
"""Metres over the radar: it measures none, so points are put on the ground."""
CAMERA_AZIMUTHS = slice(145, 255)
"""Columns of a radar image that the frame camera can see."""


@dataclass(frozen=True)
class Motion:
    """Motion of the vehicle around the exposure, and the time of the exposure."""

    twist: Twist
    exposure_s: float


def lidar_image(
    points: Matrix, calibration: Calibration, size: Size, motion: Motion | None, width: int = 1
) -> NDArray[np.float32]:
    """Range [m], intensity (0..255) and height [m] of the nearest point; 0 where there is none.

    Args:
        points: ``[N, 6]`` as ``read_points`` returns them.
        calibration: calibration of the set.
        size: height and width of the camera's image.
        motion: motion to undo; None for none.
        width: side of a point in pixels.
    """
    xyz = points[:, :3]
    if motion is not None:
        delays = points[:, 5] - motion.exposure_s
        xyz = compensate(xyz, delays, motion.twist, calibration.lidar_to_gnss)
    metres = np.linalg.norm(xyz, axis=1)
    far = metres >= NEAREST
    values = np.stack([metres, points[:, 3], xyz[:, 2]], axis=1)[far]
    return _painted(
        xyz[far], values, -metres[far], calibration.lidar_to_camera, calibration, size, width
    )


def radar_image(
    sweep: NDArray[np.uint8],
    calibration: Calibration,
    size: Size,
    motion: Motion | None,
    width: int = 1,
) -> NDArray[np.float32]:
    """Range [m] and intensity (0..255) of the strongest bin, and 0; all 0 where there is none.

    Args:
        sweep: ``[11 + bins, 400]`` as ``read_polar`` returns it.
        calibration: calibration of the set.
        size: height and width of the camera's image.
        motion: motion to undo; None for none.
        width: side of a point in pixels.
    """
    xyz, intensity, seconds = radar_points(sweep)
    if motion is not None:
        xyz = compensate(xyz, seconds - motion.exposure_s, motion.twist, calibration.radar_to_gnss)
    metres = np.linalg.norm(xyz, axis=1)
    kept = (metres >= NEAREST) & (metres <= RADAR_FARTHEST)
    metres, intensity = metres[kept], intensity[kept]
    values = np.stack([metres, intensity, np.zeros_like(metres)], axis=1)
    return _painted(
        xyz[kept], values, intensity, calibration.radar_to_camera, calibration, size, width
    )


def radar_points(sweep: NDArray[np.uint8]) -> tuple[Matrix, Matrix, Matrix]:
    """Valid bins in the camera's view: position ``[N, 3]``, intensity ``[N]``, seconds ``[N]``.

    Columns are 0.9 degrees apart and turn to the right, from -179.1 to 180; of each, rows 0 to 3
    are seconds and rows 4 to 7 nanoseconds (little-endian), row 10 is 0 if it is invalid.
    """
    azimuth = -np.radians(np.linspace(-180 + 360 / AZIMUTHS, 180, AZIMUTHS))[CAMERA_AZIMUTHS]
    view = sweep[:, CAMERA_AZIMUTHS]
    seconds, nanoseconds = (
        np.ascontiguousarray(view[rows].T).view("<u4")[:, 0].astype(np.float64)
        for rows in (slice(0, 4), slice(4, 8))
    )
    bins = view[POLAR_HEADER:].T
    metres = RANGE_BIN * np.arange(1, bins.shape[1] + 1)
    column, position = np.nonzero((view[10] > 0)[:, None] & (metres <= RADAR_FARTHEST))
    reach, angle = metres[position], azimuth[column]
    height = np.full_like(reach, RADAR_HEIGHT)
    xyz = np.stack([reach * np.cos(angle), reach * np.sin(angle), height], axis=1)
    return xyz, bins[column, position].astype(np.float64), (seconds + nanoseconds / 1e9)[column]


def event_image(
    events: Events, calibration: Calibration, size: Size, width: int = 1
) -> NDArray[np.uint8]:
    """Brighter events, darker events and 0, as counts per pixel up to 255.

    The two cameras are taken to stand in one place: x' = K R K_e^-1 x. This is what the SDK's
    stereo rectification amounts to once its second half has undone the first.
    """
    counts = np.zeros((*size, 3), np.uint8)
    rotation = calibration.event_to_camera[:3, :3]
    homography = calibration.camera_at(size) @ rotation @ np.linalg.inv(calibration.event)
    image = np.stack([events.x, events.y, np.ones_like(events.x)], axis=1) @ homography.T
    front = image[:, 2] > 0
    cols, rows = np.rint(image[front, :2] / image[front, 2:]).T
    inside = (rows >= 0) & (rows < size[0]) & (cols >= 0) & (cols < size[1])
    pixel = (rows[inside] * size[1] + cols[inside]).astype(np.int64)
    polarity = events.p[front][inside]
    for channel, sign in enumerate((1, 0)):
        total = np.bincount(pixel[polarity == sign], minlength=size[0] * size[1])
        counts[..., channel] = total.clip(max=255).reshape(size)
    return spread(counts, width) if width > 1 else counts


def _painted(
    xyz: Matrix,
    values: Matrix,
    priority: Matrix,
    to_camera: Matrix,
    calibration: Calibration,
    size: Size,
    width: int,
) -> NDArray[np.float32]:
    """The values ``[N, 3]`` of the points that win their pixels."""
    index, pixels = project(xyz, to_camera, calibration.camera_at(size), size)
    shown = winners(pixels, priority[index], size, width)
    # the last row is what -1 takes
    table = np.concatenate([values[index], np.zeros((1, 3))]).astype(np.float32)
    image: NDArray[np.float32] = table[shown]
    return image
