"""Positions of the sensors and intrinsics of the cameras, from ``calib.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..tools.json_values import json_values
from ..tools.reading import check_regular

Matrix = NDArray[np.float64]

NATIVE_SIZE = (1080, 1920)
"""Height and width of the images that the intrinsics belong to."""


@dataclass(frozen=True)
class Calibration:
    """Intrinsics ``[3, 3]`` at the native size, and rigid motions ``[4, 4]`` between frames."""

    camera: Matrix
    """Intrinsics of the frame camera."""
    event: Matrix
    """Intrinsics of the event camera."""
    lidar_to_camera: Matrix
    radar_to_camera: Matrix
    event_to_camera: Matrix
    lidar_to_gnss: Matrix
    radar_to_gnss: Matrix

    def camera_at(self, size: tuple[int, int]) -> Matrix:
        """Intrinsics of the frame camera for images of another (height, width)."""
        rows, cols = size[0] / NATIVE_SIZE[0], size[1] / NATIVE_SIZE[1]
        return np.diag([cols, rows, 1.0]) @ self.camera


def read_calibration(root: Path) -> Calibration:
    """The calibration of the set.

    Raises:
        DataError: ``calib.json`` is missing, no JSON, or lacks a matrix.
    """
    content = read_json(root / "calib.json")

    def matrix(side: int, *keys: str) -> Matrix:
        value: Any = content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        try:
            found = np.array(value)
        except ValueError:  # rows of different lengths
            found = np.empty(0)
        # text that looks like a number is none, and would be taken for one
        numbers = found.shape == (side, side) and found.dtype.kind in "iuf"
        array: Matrix = found.astype(np.float64) if numbers else np.full(1, np.nan)
        if not np.isfinite(array).all():
            raise DataError(
                f"{root / 'calib.json'}: {'.'.join(keys)} is not a {side} x {side} matrix of "
                "numbers; restore the file of the download"
            )
        return array

    return Calibration(
        camera=matrix(3, "intrinsics", "rgb", "K"),
        event=matrix(3, "intrinsics", "event", "K"),
        lidar_to_camera=matrix(4, "extrinsics", "lidar2rgb"),
        radar_to_camera=matrix(4, "extrinsics", "radar2rgb"),
        event_to_camera=matrix(4, "extrinsics", "event2rgb"),
        lidar_to_gnss=matrix(4, "extrinsics", "lidar2gnss"),
        radar_to_gnss=matrix(4, "extrinsics", "radar2gnss"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: the file is missing, no file, or something else.
    """
    check_regular(path)
    try:
        content = json_values(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; it is part of the download. Check --root",
            "missing",
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); fetch it again", "damaged") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no JSON object; fetch it again", "damaged")
    return content
