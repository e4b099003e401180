"""Light: how bright each pixel's surface is, before a camera or event sensor sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .catalogue import Weather
from .render import CURVED, FACES, FRONT, Geometry, hash01
from .world import FloatArray, Pattern, Tables

_TEXTURE_CELL = 0.28
LUMINANCE = np.array([0.30, 0.59, 0.11], np.float32)


@dataclass(frozen=True)
class Surface:
    """Deferred properties of the visible points.

    Attributes:
        x: ``[H, W]`` world position, metres; y (height) and z likewise.
        y: see x.
        z: see x.
        normal: ``[H, W, 3]`` unit vectors.
    """

    x: FloatArray
    y: FloatArray
    z: FloatArray
    normal: FloatArray


def surface(geometry: Geometry, tables: Tables) -> Surface:
    """Positions and normals of the visible points."""
    ox, oy, oz = (np.float32(v) for v in geometry.origin)
    x = geometry.depth * geometry.slope_x + ox
    y = geometry.depth * geometry.slope_y[:, None] + oy
    z = geometry.depth + oz
    normal = FACES[geometry.face]
    curved = geometry.face == CURVED
    if curved.any():
        row = geometry.primitive[curved]
        point = np.stack([x[curved], y[curved], z[curved]], axis=-1) - tables.anchor[row]
        point[:, 0] -= geometry.time * tables.motion[row, 0]
        point[:, 2] -= geometry.time * tables.motion[row, 1]
        gradient = point / tables.radius[row] ** 2
        normal[curved] = gradient / np.linalg.norm(gradient, axis=-1, keepdims=True)
    return Surface(x, y, z, normal)


def illuminate(
    geometry: Geometry,
    points: Surface,
    tables: Tables,
    weather: Weather,
    sun: FloatArray,
    salt: int,
) -> FloatArray:
    """Factor ``[H, W]`` with radiance = factor * albedo: light times texture times paint.

        factor = (1 + r (2 u - 1)) p (ambient + sun max(0, n s) + headlight)

    with roughness r, noise u of the surface and paint p. The sky has factor 1 and a slow gradient.

    Args:
        geometry: from ``cast``.
        points: from ``surface``.
        tables: of the same world.
        weather: the light.
        sun: ``[3]`` unit vector to the sun.
        salt: the scene's own texture.
    """
    row = geometry.primitive
    anchor = tables.anchor[row]
    motion = geometry.time * tables.motion[row]
    x, y, z = points.x - anchor[..., 0], points.y - anchor[..., 1], points.z - anchor[..., 2]
    if geometry.time:
        x, z = x - motion[..., 0], z - motion[..., 1]
    # finer than a pixel the texture averages out
    fade = np.clip(14 / geometry.depth, 0.15, 1)
    cell = np.float32(1 / _TEXTURE_CELL)
    # half a cell off: a flat face must not lie on a cell's border
    noise = hash01(x * cell + 0.5, y * cell + 0.5, z * cell + 0.5, salt)
    factor = 1 + tables.roughness[row] * fade * (2 * noise - 1)
    factor *= _paint(tables.pattern[row], x, y, z, geometry.face)

    light = weather.ambient + weather.sun * np.maximum(points.normal @ sun, 0)
    if weather.headlight:
        light = light + weather.headlight * _headlight(geometry)
    factor *= light
    sky = 1 + 0.25 * geometry.slope_y[:, None]
    return np.asarray(np.where(row == 0, sky, factor), np.float32)


def _headlight(geometry: Geometry) -> FloatArray:
    """Low beam: a cone ahead and below the horizon that falls with the square of the distance."""
    across = (geometry.slope_x / 0.55) ** 2
    down = ((geometry.slope_y[:, None] + 0.16) / 0.24) ** 2
    aim = np.exp(-across - down)
    return np.asarray(aim * np.minimum((9 / geometry.depth) ** 2, 2.0), np.float32)


def _paint(
    pattern: NDArray[np.uint8],
    x: FloatArray,
    y: FloatArray,
    z: FloatArray,
    face: NDArray[np.uint8],
) -> FloatArray:
    """Multiplier of the finer paint: windows of façades and buses, glyphs of plates."""
    paint = np.ones(x.shape, np.float32)
    along = np.where(face == FRONT, x, z)
    where = pattern == Pattern.WINDOWS
    if where.any():
        a, h = along[where], y[where]
        glass = (a % 2.6 > 0.8) & (a % 2.6 < 2.2) & (h % 3.2 > 1.1) & (h % 3.2 < 2.7)
        paint[where] = np.where(glass, 0.5, 1)
    where = pattern == Pattern.BAND
    if where.any():
        h = y[where]
        paint[where] = np.where((h > 1.2) & (h < 2.5), 0.12, 1)
    where = pattern == Pattern.GLYPH
    if where.any():
        h = y[where]
        paint[where] = np.where(h % 0.5 < 0.14, 0.35, 1)
    return paint


def through_air(
    radiance: FloatArray, geometry: Geometry, weather: Weather, glow: FloatArray | float
) -> FloatArray:
    """Attenuate by the air and add what it scatters: L exp(-k Z) + glow (1 - exp(-k Z)).

    Args:
        radiance: ``[H, W]`` or ``[H, W, C]``.
        geometry: for the depth; the sky is already at the end of the path.
        weather: extinction k per metre.
        glow: radiance of the air, a scalar or ``[C]``.
    """
    keep = np.exp(-weather.extinction * geometry.depth)
    if radiance.ndim == 3:
        keep = keep[..., None]
    return np.asarray(radiance * keep + glow * (1 - keep), np.float32)
