"""Points to pixels: pinhole projection, one point per pixel, enlarged points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Matrix

Size = tuple[int, int]

_BEHIND = 1e-6
"""Points nearer to the plane of the camera than this, in metres, have no image."""


def project(
    points: Matrix, to_camera: Matrix, intrinsics: Matrix, size: Size
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Select the points that are in the image, and find their pixels.

    As in the SDK, a position is cut down to whole numbers, not rounded.

    Args:
        points: ``[N, 3]`` in the sensor's frame, metres.
        to_camera: ``[4, 4]`` from there to the camera (right, down, forward).
        intrinsics: ``[3, 3]`` for images of ``size``.
        size: height and width in pixels.

    Returns:
        ``index [n]`` of the points, ``pixel [n]`` = row * width + column.
    """
    camera = points @ to_camera[:3, :3].T + to_camera[:3, 3]
    front = np.flatnonzero(camera[:, 2] > _BEHIND)
    image = camera[front] @ intrinsics.T
    position = image[:, :2] / image[:, 2:]
    inside = ((position >= 0) & (position < (size[1], size[0]))).all(axis=1)
    cols, rows = position[inside].astype(np.int64).T
    return front[inside], rows * size[1] + cols


def winners(
    pixels: NDArray[np.int64], priority: NDArray[np.float64], size: Size, width: int = 1
) -> NDArray[np.int64]:
    """The point that is shown in each pixel: ``[H, W]``, -1 where there is none.

    Of the points in a pixel the one of highest priority is shown, the first of equal ones. Each is
    ``width`` pixels wide and high; where points overlap, priority decides again.

    Args:
        pixels: ``[n]`` from ``project``.
        priority: ``[n]``, finite.
        size: height and width.
        width: side of a point; an even one reaches further to the right and down.
    """
    order = np.lexsort((-priority, pixels))
    taken, first = np.unique(pixels[order], return_index=True)
    best = np.full(size, -np.inf)
    index = np.full(size, -1, np.int64)
    best.flat[taken] = priority[order[first]]
    index.flat[taken] = order[first]
    for axis in (0, 1):
        source, source_index = best.copy(), index.copy()
        for step in _steps(width):
            other = _shifted(source, step, axis, -np.inf)
            higher = other > best
            best[higher] = other[higher]
            index[higher] = _shifted(source_index, step, axis, -1)[higher]
    return index


def spread(counts: NDArray[Any], width: int) -> NDArray[Any]:
    """The largest of the neighbouring counts ``[H, W, C]``, for events as wide as ``width``."""
    for axis in (0, 1):
        steps = [_shifted(counts, step, axis, 0) for step in _steps(width)]
        counts = np.max([counts, *steps], axis=0)
    return counts


def _steps(width: int) -> list[int]:
    """Offsets in pixels from a point of this width to the others that it covers, without 0."""
    return [step for step in range(-((width - 1) // 2), width // 2 + 1) if step]


def _shifted(array: NDArray[Any], step: int, axis: int, fill: float) -> NDArray[Any]:
    """``array`` moved by ``step`` along ``axis``; ``fill`` comes in."""
    moved = np.roll(array, step, axis)
    edge = [slice(None)] * array.ndim
    edge[axis] = slice(None, step) if step > 0 else slice(step, None)
    moved[tuple(edge)] = fill
    return moved
