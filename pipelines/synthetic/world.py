"""A scene as tables of primitives: boxes, ellipsoids and painted ground.

Metres; x to the right, y up, z along the road; the camera stands at the origin's height of eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .catalogue import CLASS_ID, MATERIALS, WEATHER, Colour

FloatArray = NDArray[np.float32]


class Pattern(IntEnum):
    """Paint that is finer than the geometry."""

    PLAIN = 0
    WINDOWS = 1
    BAND = 2
    GLYPH = 3


class Holes(IntEnum):
    """Kind of holes through which a solid lets the view pass."""

    NONE = 0
    PICKETS = 1
    LEAVES = 2


class Solid(NamedTuple):
    """A box, or the ellipsoid inscribed in it, between two corners."""

    row: int
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    round: bool
    holes: Holes
    motion: tuple[float, float]
    """Displacement along x and z between the two event exposures."""


class Patch(NamedTuple):
    """Paint on the ground: a rectangle or ellipse in x and z, perhaps dashed. Later ones cover."""

    row: int
    x: tuple[float, float]
    z: tuple[float, float]
    round: bool
    dash_x: tuple[float, float]
    dash_z: tuple[float, float]
    """Period and painted length in metres; period 0 is solid."""


class _Row(NamedTuple):
    class_id: int
    albedo: Colour
    reflectivity: float
    roughness: float
    flicker: float
    pattern: Pattern
    anchor: tuple[float, float, float]
    motion: tuple[float, float]
    radius: tuple[float, float, float]


@dataclass(frozen=True)
class Tables:
    """Properties per primitive, gathered by the renderer's primitive index; row 0 is the sky."""

    class_id: NDArray[np.uint8]
    albedo: FloatArray
    reflectivity: FloatArray
    roughness: FloatArray
    flicker: FloatArray
    pattern: NDArray[np.uint8]
    anchor: FloatArray
    """Origin of the texture: a corner, or the centre of an ellipsoid."""
    motion: FloatArray
    radius: FloatArray
    """Radii of an ellipsoid, 0 for a box."""


class World:
    """Collects the primitives of one frame.

    Args:
        condition: weather, which colours sky and water.
    """

    def __init__(self, condition: str) -> None:
        self.condition = condition
        self.solids: list[Solid] = []
        self.patches: list[Patch] = []
        self._rows: list[_Row] = []
        self._row("Sky", colour=WEATHER[condition].sky)

    def _row(
        self,
        name: str,
        *,
        colour: Colour | None = None,
        pattern: Pattern = Pattern.PLAIN,
        anchor: tuple[float, float, float] = (0.0, 0.0, 0.0),
        motion: tuple[float, float] = (0.0, 0.0),
        radius: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> int:
        m = MATERIALS[name]
        look = (m.reflectivity, m.roughness, m.flicker, pattern, anchor, motion, radius)
        self._rows.append(_Row(CLASS_ID[name], colour or m.albedo, *look))
        return len(self._rows) - 1

    def solid(
        self,
        name: str,
        x: float,
        z: float,
        size: tuple[float, float, float],
        *,
        base: float = 0.0,
        round: bool = False,
        colour: Colour | None = None,
        pattern: Pattern = Pattern.PLAIN,
        holes: Holes = Holes.NONE,
        motion: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Add a box or ellipsoid.

        Args:
            name: class.
            x: centre, lateral.
            z: near face.
            size: width (x), height (y), length (z).
            base: height of the lower face.
            round: inscribed ellipsoid instead of the box.
            colour: albedo, if not the material's.
            pattern: paint.
            holes: how the view passes through. The label covers the holes, as annotators do.
            motion: displacement along x and z between the event exposures.
        """
        w, h, length = size
        low, high = (x - w / 2, base, z), (x + w / 2, base + h, z + length)
        anchor, radius = low, (0.0, 0.0, 0.0)
        if round:
            anchor, radius = (x, base + h / 2, z + length / 2), (w / 2, h / 2, length / 2)
        row = self._row(
            name, colour=colour, pattern=pattern, anchor=anchor, motion=motion, radius=radius
        )
        self.solids.append(Solid(row, low, high, round, holes, motion))

    def patch(
        self,
        name: str,
        x: tuple[float, float],
        z: tuple[float, float],
        *,
        round: bool = False,
        dash_x: tuple[float, float] = (0.0, 0.0),
        dash_z: tuple[float, float] = (0.0, 0.0),
        colour: Colour | None = None,
    ) -> None:
        """Paint the ground between ``x`` and ``z`` (low, high), over everything painted before."""
        self.patches.append(Patch(self._row(name, colour=colour), x, z, round, dash_x, dash_z))

    def tables(self) -> Tables:
        """The primitives' properties as arrays."""
        columns = list(zip(*self._rows, strict=True))
        floats = [np.asarray(columns[i], np.float32) for i in (1, 2, 3, 4, 6, 7, 8)]
        albedo, reflectivity, roughness, flicker, anchor, motion, radius = floats
        return Tables(
            class_id=np.asarray(columns[0], np.uint8),
            albedo=albedo,
            reflectivity=reflectivity,
            roughness=roughness,
            flicker=flicker,
            pattern=np.asarray(columns[5], np.uint8),
            anchor=anchor,
            motion=motion,
            radius=radius,
        )
