"""Depth, event and LiDAR images from the shared geometry."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from .catalogue import Weather
from .render import Geometry
from .shade import Surface
from .world import FloatArray, Tables

DEPTH_RANGE: Final = 120.0
"""Metres beyond which the stereo matcher gives up."""
GREY_RANGE: Final = 30.0
_DISPARITY_NOISE: Final = 0.0011
_EVENT_FLOOR: Final = 0.02
_EVENT_THRESHOLD: Final = 0.24
_RINGS, _AZIMUTHS, _FULL_SIZE = 64, 1000, 1042
_ELEVATION: Final = (12.0, -34.0)
_LIDAR_EXTINCTION: Final = 0.3
"""Share of the air's extinction that costs a return: the receiver gates out near scatter."""


def disparity_depth(geometry: Geometry, weather: Weather, rng: np.random.Generator) -> FloatArray:
    """Depth as a stereo matcher finds it: 1 / (1/Z + e), e white plus 4-pixel correlated noise.

    The error in depth grows with Z^2; rain, fog and darkness scale e.

    Args:
        geometry: from ``cast``.
        weather: the scale of e.
        rng: the depth sensor's own stream.

    Returns:
        ``[H, W]`` metres, at most 120.
    """
    size = len(geometry.depth)
    white = rng.standard_normal((size, size), dtype=np.float32)
    coarse = rng.standard_normal((-(-size // 4),) * 2, dtype=np.float32)
    correlated = coarse.repeat(4, 0).repeat(4, 1)[:size, :size]
    error = (0.7 * white + 0.7 * correlated) * np.float32(_DISPARITY_NOISE * weather.depth_noise)
    inverse = np.maximum(1 / geometry.depth + error, 1 / DEPTH_RANGE)
    return (1 / inverse).astype(np.float32)


def hha(
    depth: FloatArray, geometry: Geometry, points: Surface, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Disparity, height above ground, angle to gravity, one byte each.

        255 sqrt(2 / Z)      255 sqrt(height / 12 m)      255 angle(normal, up) / 180 degrees

    The roots spend the codes where the information is: kerbs, and the far half of the street.

    Args:
        depth: ``[H, W]`` measured metres.
        geometry: for the rays.
        points: for the normals, which are perturbed with the distance.
        rng: the depth sensor's own stream.

    Returns:
        ``[H, W, 3]`` uint8.
    """
    height = geometry.origin[1] + depth * geometry.slope_y[:, None]
    wobble = rng.standard_normal(depth.shape, dtype=np.float32) * (0.03 + 0.006 * depth)
    angle = np.arccos(np.clip(points.normal[..., 1], -1, 1)) + wobble
    image = np.stack(
        [
            np.sqrt(2 / np.maximum(depth, 2)),
            np.sqrt(np.clip(height, 0, 12) / 12),
            np.clip(np.abs(angle) / np.float32(np.pi), 0, 1),
        ],
        axis=-1,
    )
    return np.asarray(np.rint(255 * image), np.uint8)


def grey_depth(depth: FloatArray) -> NDArray[np.uint8]:
    """Depth ``[H, W]`` uint8, far = bright, white from 30 m on."""
    return np.asarray(np.rint(255 * np.minimum(depth / GREY_RANGE, 1)), np.uint8)


def events(
    before: FloatArray,
    after: FloatArray,
    flicker: FloatArray,
    weather: Weather,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Polarity image of two exposures: sign of d log(I + e) where it exceeds 0.24.

    Args:
        before: ``[H, W]`` luminance of the first exposure, before any camera gain.
        after: luminance of the second exposure, the ego vehicle 0.45 m further.
        flicker: ``[H, W]`` amplitude a of what pulses, spins, ripples or walks; adds U(-a, a).
        weather: noise of the log brightness.
        rng: the event sensor's own stream.

    Returns:
        ``[H, W, 3]`` uint8 of 0 and 255: red brighter, blue darker, green always 0.
    """
    change = np.log((after + _EVENT_FLOOR) / (before + _EVENT_FLOOR))
    noise = rng.standard_normal(change.shape, dtype=np.float32)
    change += noise * np.float32(weather.event_noise)
    change += flicker * (2 * rng.random(change.shape, dtype=np.float32) - 1)
    image = np.zeros((*change.shape, 3), np.uint8)
    image[..., 0][change > _EVENT_THRESHOLD] = 255
    image[..., 2][change < -_EVENT_THRESHOLD] = 255
    return image


def lidar(
    geometry: Geometry,
    points: Surface,
    tables: Tables,
    weather: Weather,
    rng: np.random.Generator,
    *,
    mode: Literal["rich", "grey"],
    jitter: bool,
) -> NDArray[np.uint8]:
    """Sweep of a 64-ring scanner, seen from the camera; the nearest return of a pixel wins.

    64 rings from +12 to -34 degrees and 1000 azimuths over 90 degrees at 1042 pixels, both scaled
    with the side so that the coverage stays a few per cent. A ray returns with the probability

        min(1, 4 (0.15 + reflectivity) (0.25 + 0.75 cos)) exp(-0.6 k r) / (1 + (r / 70)^2)

    Args:
        geometry: from ``cast``.
        points: from ``surface``.
        tables: reflectivities.
        weather: extinction k and false returns.
        rng: the scanner's own stream.
        mode: ``rich`` = range (255 at 100 m), reflectivity, height (255 at 12 m) from 1;
            ``grey`` = range in metres, 1..100, in all three channels.
        jitter: a loose mount: the sweep is turned by 0.02 rad and each point by 1.5 pixels of 1042.

    Returns:
        ``[H, W, 3]`` uint8, 0 without a return.
    """
    size = len(geometry.depth)
    rings = max(min(16, size // 7), round(_RINGS * size / _FULL_SIZE))
    azimuths = max(60, round(_AZIMUTHS * size / _FULL_SIZE))
    azimuth = np.deg2rad((np.arange(azimuths) + 0.5) * (90 / azimuths) - 45)
    elevation = np.deg2rad(np.linspace(*_ELEVATION, rings))[:, None]
    slope_x = np.tan(azimuth) + np.zeros((rings, 1))
    slope_y = np.tan(elevation) / np.cos(azimuth)
    focal = geometry.focal
    column = ((slope_x - geometry.slope_x[0]) * focal + 0.5).astype(np.int32).ravel()
    row = ((geometry.slope_y[0] - slope_y) * focal + 0.5).astype(np.int32).ravel()

    depth = geometry.depth[row, column]
    ray = np.sqrt(1 + slope_x**2 + slope_y**2).astype(np.float32).ravel()
    reach = depth * ray
    primitive = geometry.primitive[row, column]
    reflectivity = tables.reflectivity[primitive]
    toward = points.normal[row, column]
    cosine = (
        np.abs(toward[:, 0] * slope_x.ravel() + toward[:, 1] * slope_y.ravel() + toward[:, 2]) / ray
    )
    chance = np.minimum(4 * (0.15 + reflectivity) * (0.25 + 0.75 * cosine), 1)
    chance *= np.exp(-2 * _LIDAR_EXTINCTION * weather.extinction * reach) / (1 + (reach / 70) ** 2)
    chance[reflectivity == 0] = 0
    lucky = rng.random((3, len(reach)), dtype=np.float32)
    noise = rng.standard_normal((4, len(reach)), dtype=np.float32)
    hit = lucky[0] < chance
    reach = reach + 0.03 * noise[0]
    reflectivity = np.clip(reflectivity * (1 + 0.08 * noise[1]), 0, 1)
    ghost = lucky[1] < weather.false_returns
    reach = np.where(ghost, np.minimum(2 + 7 * lucky[2], reach), reach)
    reflectivity = np.where(ghost, 0.05, reflectivity)
    hit |= ghost
    height = geometry.origin[1] + reach / ray * slope_y.ravel()

    if jitter:
        turn = rng.normal(0, 0.02, 2) * focal
        spread = 1.5 * size / _FULL_SIZE
        row = np.clip(np.rint(row + turn[0] + spread * noise[2]), 0, size - 1).astype(np.int32)
        column = np.clip(np.rint(column + turn[1] + spread * noise[3]), 0, size - 1).astype(
            np.int32
        )
    # far to near, so that the nearest point is written last; stable, so that ties have one order
    order = np.flatnonzero(hit)
    order = order[np.argsort(-reach[order], kind="stable")]
    image = np.zeros((size, size, 3), np.uint8)
    if mode == "grey":
        codes = np.repeat(reach[:, None], 3, axis=1)
        codes = np.clip(np.rint(codes), 1, 100)
    else:
        codes = np.stack([reach * 2.55, reflectivity * 255, height * (255 / 12)], axis=1)
        codes = np.clip(np.rint(codes), 1, 255)
    image[row[order], column[order]] = codes[order].astype(np.uint8)
    return image
