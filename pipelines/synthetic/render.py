"""Ray casting: a world and a camera to the geometry that every sensor shares.

The camera looks along z without roll or pitch, so a ray's slopes depend on its column or row alone
and a box test is an outer combination of two vectors. Each primitive touches only the rectangle
that it projects to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .world import FloatArray, Holes, Patch, Solid, World

CAMERA_HEIGHT: Final = 2.4
HORIZON: Final = 0.46
"""Row of the horizon as a share of the image height."""
FAR: Final = 400.0
NEAR: Final = 0.3
EGO_STEP: Final = 0.45
"""Metres driven between the two event exposures."""
EGO_YAW: Final = 0.006
"""Radians turned between them."""

_PICKET: Final = (1.0, 0.55)
"""Period and width of a fence's boards, metres: coarse enough to see at 128 pixels."""

# what a ray met: faces of a box by their normals, then curved and nothing
FACES: Final = np.array(
    [[-1, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, -1], [0, 0, -1]], np.float32
)
LEFT, RIGHT, UP, DOWN, FRONT, CURVED = range(6)


@dataclass(frozen=True)
class Geometry:
    """Surface that each pixel sees.

    Attributes:
        depth: ``[H, W]`` along z from the camera, metres; ``FAR`` for the sky.
        primitive: ``[H, W]`` row of the world's tables, 0 for the sky.
        face: ``[H, W]`` index into ``FACES``.
        label: ``[H, W]`` primitive that the annotation names; differs inside a fence's gaps.
        slope_x: ``[W]`` dx/dz of the rays.
        slope_y: ``[H]`` dy/dz of the rays, up positive.
        origin: camera position.
        time: 0 or 1, the event exposure.
    """

    depth: FloatArray
    primitive: NDArray[np.int16]
    face: NDArray[np.uint8]
    label: NDArray[np.int16]
    slope_x: FloatArray
    slope_y: FloatArray
    origin: tuple[float, float, float]
    time: int

    @property
    def focal(self) -> float:
        """Focal length in pixels: half the width, a field of view of 90 degrees."""
        return len(self.slope_x) / 2


def hash01(x: FloatArray, y: FloatArray, z: FloatArray, salt: int = 0) -> FloatArray:
    """Uniform 0..1 noise of an integer lattice: the same cell always gives the same value.

    Args:
        x: coordinates in cells; y, z likewise and broadcastable.
        y: see x.
        z: see x.
        salt: gives another noise.
    """
    ix, iy, iz = (np.floor(v).astype(np.int32).view(np.uint32) for v in (x, y, z))
    h = ix * np.uint32(73856093)
    h = h ^ (iy * np.uint32(19349663))
    h = h ^ (iz * np.uint32(83492791)) ^ np.uint32(salt * 2654435761 & 0xFFFFFFFF)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0x5BD1E995)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x27D4EB2F)
    h ^= h >> np.uint32(16)
    return h.astype(np.float32) * np.float32(2.0**-32)


def cast(world: World, size: int, time: int = 0) -> Geometry:
    """Cast one ray per pixel.

    Args:
        world: the primitives.
        size: image height and width, pixels.
        time: 0 for the exposure all sensors share, 1 for the second one of the event sensor, for
            which the ego vehicle and the moving objects have moved on.
    """
    focal = size / 2
    pixel = np.arange(size, dtype=np.float32) + np.float32(0.5)
    # a slope of exactly zero would divide by zero; a small turn is a shift of the columns
    slope_x = (pixel - focal) / focal + np.float32(time * EGO_YAW + 1e-6)
    slope_y = (HORIZON * size - pixel) / focal + np.float32(1e-6)
    geometry = Geometry(
        depth=np.full((size, size), FAR, np.float32),
        primitive=np.zeros((size, size), np.int16),
        face=np.full((size, size), FRONT, np.uint8),
        label=np.zeros((size, size), np.int16),
        slope_x=slope_x,
        slope_y=slope_y,
        origin=(0.0, CAMERA_HEIGHT, time * EGO_STEP),
        time=time,
    )
    _paint_ground(geometry, world.patches)
    # the annotation ignores holes, so it keeps a depth of its own
    nearest = geometry.depth.copy()
    for solid in world.solids:
        _draw(geometry, solid, nearest)
    return geometry


def _paint_ground(geometry: Geometry, patches: list[Patch]) -> None:
    _, height, ego_z = geometry.origin
    first = int(np.argmax(geometry.slope_y < 0))
    depth = np.minimum(height / -geometry.slope_y[first:], FAR - 1)
    x = depth[:, None] * geometry.slope_x
    z = depth + ego_z
    rows = np.zeros(x.shape, np.int16)
    for patch in patches:
        inside = np.flatnonzero((z >= patch.z[0]) & (z <= patch.z[1]))
        if not len(inside):
            continue
        band = slice(inside[0], inside[-1] + 1)
        px, pz = x[band], z[band, None]
        if patch.round:
            (x0, x1), (z0, z1) = patch.x, patch.z
            rx, rz = (x1 - x0) / 2, (z1 - z0) / 2
            mask = ((px - x0 - rx) / rx) ** 2 + ((pz - z0 - rz) / rz) ** 2 < 1
        else:
            mask = (px >= patch.x[0]) & (px <= patch.x[1])
        if patch.dash_z[0]:
            mask &= (pz - patch.z[0]) % patch.dash_z[0] < patch.dash_z[1]
        if patch.dash_x[0]:
            mask &= (px - patch.x[0]) % patch.dash_x[0] < patch.dash_x[1]
        rows[band][mask] = patch.row
    geometry.depth[first:] = depth[:, None]
    geometry.primitive[first:] = rows
    geometry.label[first:] = rows
    geometry.face[first:] = UP


def _span(low: float, high: float, z: tuple[float, float], slopes: FloatArray) -> slice:
    """Indices whose slope may meet ``low..high`` between the depths ``z``; slopes may fall."""
    smallest, largest = min(low / z[0], low / z[1]), max(high / z[0], high / z[1])
    if slopes[0] > slopes[-1]:
        start, stop = np.searchsorted(-slopes, (-largest, -smallest))
    else:
        start, stop = np.searchsorted(slopes, (smallest, largest))
    return slice(int(start), int(stop))


def _draw(geometry: Geometry, solid: Solid, nearest: FloatArray) -> None:
    # corners relative to the camera at this time
    ox, oy, oz = geometry.origin
    dx, dz = (geometry.time * m for m in solid.motion)
    x0, x1 = solid.low[0] + dx - ox, solid.high[0] + dx - ox
    y0, y1 = solid.low[1] - oy, solid.high[1] - oy
    z0, z1 = solid.low[2] + dz - oz, solid.high[2] + dz - oz
    if z1 <= NEAR:
        return
    reach = max(z0, NEAR), z1
    columns = _span(x0, x1, reach, geometry.slope_x)
    rows = _span(y0, y1, reach, geometry.slope_y)
    if columns.start >= columns.stop or rows.start >= rows.stop:
        return
    sx, sy = geometry.slope_x[columns], geometry.slope_y[rows, None]
    if solid.round:
        depth, hit = _meet_ellipsoid(sx, sy, (x0, y0, z0), (x1, y1, z1))
        face = np.full(depth.shape, CURVED, np.uint8)
    else:
        depth, hit, face = _meet_box(sx, sy, (x0, y0, z0), (x1, y1, z1))
    view = rows, columns
    seen = hit & (depth < nearest[view])
    nearest[view][seen] = depth[seen]
    geometry.label[view][seen] = solid.row
    hit &= depth < geometry.depth[view]
    if solid.holes is Holes.PICKETS:
        # along the longer side of the panel
        along = depth - z0 if z1 - z0 > x1 - x0 else depth * sx - x0
        hit &= along % _PICKET[0] < _PICKET[1]
    elif solid.holes is Holes.LEAVES:
        cell = np.float32(2.2)
        hit &= hash01((depth * sx - x0) * cell, (depth * sy - y0) * cell, (depth - z0) * cell) > 0.2
    geometry.depth[view][hit] = depth[hit]
    geometry.primitive[view][hit] = solid.row
    geometry.face[view][hit] = face[hit]


_Corner = tuple[float, float, float]


def _meet_box(
    sx: FloatArray, sy: FloatArray, low: _Corner, high: _Corner
) -> tuple[FloatArray, NDArray[np.bool_], NDArray[np.uint8]]:
    """Depth, hit and face of rays with slopes ``sx [w]`` and ``sy [h, 1]`` against a box."""
    ax, bx = low[0] / sx, high[0] / sx
    ay, by = low[1] / sy, high[1] / sy
    near_x, far_x = np.minimum(ax, bx), np.maximum(ax, bx)
    near_y, far_y = np.minimum(ay, by), np.maximum(ay, by)
    front = np.maximum(near_x, np.float32(low[2]))
    depth = np.maximum(front, near_y)
    hit = depth < np.minimum(np.minimum(far_x, np.float32(high[2])), far_y)
    hit &= depth > NEAR
    side = np.where(near_x > low[2], np.where(sx > 0, LEFT, RIGHT), FRONT).astype(np.uint8)
    face = np.where(near_y > front, np.where(sy < 0, UP, DOWN).astype(np.uint8), side)
    return depth, hit, face


def _meet_ellipsoid(
    sx: FloatArray, sy: FloatArray, low: _Corner, high: _Corner
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Depth and hit of rays against the ellipsoid inscribed in a box: a t^2 - 2 b t + c = 0."""
    (cx, rx), (cy, ry), (cz, rz) = (
        ((lo + hi) / 2, (hi - lo) / 2) for lo, hi in zip(low, high, strict=True)
    )
    a = (sx / rx) ** 2 + (sy / ry) ** 2 + np.float32(1 / rz**2)
    b = sx * np.float32(cx / rx**2) + sy * np.float32(cy / ry**2) + np.float32(cz / rz**2)
    c = np.float32((cx / rx) ** 2 + (cy / ry) ** 2 + (cz / rz) ** 2 - 1)
    root = b * b - a * c
    depth = (b - np.sqrt(np.maximum(root, 0))) / a
    return depth, (root > 0) & (depth > NEAR)
