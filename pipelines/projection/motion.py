"""Motion of the vehicle between a measurement and the exposure of the camera."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..tools.reading import check_regular
from .calibration import Matrix

_FIELDS = 28
"""Integers in a GNSS file; those used are named by their position below."""
_RATES, _GROUND_SPEED = slice(17, 20), 23


@dataclass(frozen=True)
class Twist:
    """Constant motion in the frame of the GNSS unit (forward, right, down)."""

    speed: float
    """Metres per second, forward."""
    rates: tuple[float, float, float]
    """Radians per second about the three axes: roll, pitch, heading."""


def read_gnss(path: Path) -> Twist:
    """The motion in a GNSS file: one line of 28 integers, as u-blox receivers report them.

    Speed over ground is in mm/s, angular rates are in 1e-5 degrees/s.

    Raises:
        DataError: the file cannot be read or is something else.
    """
    check_regular(path)
    try:
        values = [int(word) for word in path.read_text(encoding="utf-8-sig").split("\n")[0].split()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path}: {error}; restore it, or use --no-motion", "damaged"
        ) from error
    if len(values) != _FIELDS:
        raise DataError(
            f"{path} has {len(values)} numbers in its first line, expected {_FIELDS}; fetch it "
            "again, or use --no-motion",
            "damaged",
        )
    roll, pitch, heading = np.deg2rad(np.array(values[_RATES]) / 1e5).tolist()
    return Twist(values[_GROUND_SPEED] / 1e3, (roll, pitch, heading))


def compensate(points: Matrix, delays: Matrix, twist: Twist, to_gnss: Matrix) -> Matrix:
    """Move points to where they would have been measured at the moment of the exposure.

    A point p seen ``t`` seconds later, in the vehicle's frame, was at exp(t w) p + integral over s
    from 0 to t of exp(s w) v, with angular velocity w and velocity v: the vehicle moves on a screw.

    Args:
        points: ``[N, 3]`` in the sensor's frame, metres.
        delays: ``[N]`` seconds from the exposure to the measurement, also negative.
        twist: motion of the vehicle.
        to_gnss: ``[4, 4]`` from the sensor's frame to that of the GNSS unit.

    Returns:
        ``[N, 3]`` in the sensor's frame.
    """
    velocity = np.array([twist.speed, 0.0, 0.0])
    rate = float(np.linalg.norm(twist.rates))
    moved = points @ to_gnss[:3, :3].T + to_gnss[:3, 3]
    t = delays[:, None]
    if rate * float(np.abs(delays).max(initial=0.0)) < 1e-12:
        moved = moved + t * velocity
    else:
        axis = np.array(twist.rates) / rate
        sine, cosine = np.sin(rate * t), np.cos(rate * t)
        along = (moved @ axis)[:, None] * axis
        moved = along + cosine * (moved - along) + sine * np.cross(axis, moved)
        ahead = velocity @ axis * axis
        aside = velocity - ahead
        moved += t * ahead + (sine * aside + (1 - cosine) * np.cross(axis, aside)) / rate
    result: Matrix = (moved - to_gnss[:3, 3]) @ np.linalg.inv(to_gnss[:3, :3]).T
    return result
