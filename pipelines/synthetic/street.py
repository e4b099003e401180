"""The still part of a scene: road, paint, pavement, verges, façades, bridge, trees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .catalogue import ASPHALT, BARK, FACADES, TEST_FACADES, WEATHER, Colour
from .world import Holes, Pattern, World

END = 95.0
"""Length of the built-up street in metres."""
PAVEMENT = 0.2
"""Height of the pavements."""


@dataclass(frozen=True)
class Profile:
    """Cross-section of the street: lateral positions in metres, the camera at 0."""

    left: float
    """Left kerb, negative."""
    right: float
    """Right kerb."""
    walk: float
    """Width of a pavement."""
    verge: float
    """Width of the strip of soil beside it."""
    verge_first: tuple[bool, bool]
    """Left and right: is the verge between road and pavement, or behind the pavement?"""
    facades: tuple[Colour, ...]

    def kerb(self, side: int) -> float:
        """Edge of the road on a side, -1 or 1."""
        return self.right if side > 0 else self.left

    def pavement(self, side: int) -> float:
        """Inner edge of the pavement of a side."""
        first = self.verge_first[side > 0]
        return self.kerb(side) + side * (self.verge if first else 0.0)

    def facade(self, side: int) -> float:
        """Façade line of a side."""
        return self.kerb(side) + side * (self.walk + self.verge)


def draw_profile(rng: np.random.Generator, test: bool) -> Profile:
    """Cross-section of a scene; the test split has wider roads and other façades."""
    wider = 1.2 if test else 0.0
    palette = TEST_FACADES if test else FACADES
    picks = rng.permutation(len(palette))[:2]
    return Profile(
        left=-rng.uniform(3.6, 4.8) - wider,
        right=rng.uniform(1.9, 2.6) + wider / 2,
        walk=rng.uniform(1.9, 2.6),
        verge=rng.uniform(1.8, 2.8),
        verge_first=(bool(rng.random() < 0.5), bool(rng.random() < 0.5)),
        facades=tuple(palette[i] for i in picks),
    )


def build_street(world: World, profile: Profile, rng: np.random.Generator) -> None:
    """Add everything that stands still and is not furniture."""
    _paint_soil(world, profile, rng)
    _paint_road(world, profile, rng)
    for side in (-1, 1):
        middle = profile.pavement(side) + side * profile.walk / 2
        world.solid("SideWalk", middle, 0.35, (profile.walk, PAVEMENT, END + 60))
        _build_facades(world, profile, side, rng)
    _build_near_barriers(world, profile, rng)
    _build_end(world, profile, rng)
    if rng.random() < 0.36:
        _build_bridge(world, profile, rng)
    _plant(world, profile, rng)


def _paint_soil(world: World, profile: Profile, rng: np.random.Generator) -> None:
    """Ground and terrain in alternating stretches on both sides, so neither has a side."""
    world.patch("Terrain", (-900.0, 900.0), (0.0, 900.0))
    for side in (-1, 1):
        z, bare = -rng.uniform(0, 4), rng.random() < 0.5
        edges = sorted((profile.kerb(side), side * 60.0))
        while z < 70:
            length = rng.uniform(3, 5) + 0.25 * max(z, 0)
            if bare:
                world.patch("Ground", (edges[0], edges[1]), (z, z + length))
            z, bare = z + length, not bare


def _paint_road(world: World, profile: Profile, rng: np.random.Generator) -> None:
    left, right = profile.left, profile.right
    world.patch("Road", (left, right), (0.0, 900.0))
    if rng.random() < 0.75:
        # tram track: in the own lane or in the oncoming one
        centre = rng.choice([right - 1.3, left + 1.8])
        for rail in (centre - 0.8, centre + 0.8):
            world.patch("RailTrack", (rail - 0.32, rail + 0.32), (0.0, 900.0))
    middle = (left + right) / 2 - 0.3
    world.patch(
        "RoadLine", (middle - 0.2, middle + 0.2), (rng.uniform(-5, 0), 900.0), dash_z=(5.0, 3.0)
    )
    for edge in (left + 0.45, right - 0.45):
        if rng.random() < 0.6:
            world.patch("RoadLine", (edge - 0.18, edge + 0.18), (0.0, 900.0))
    if rng.random() < 0.5:
        z = rng.uniform(4.5, 9)
        world.patch("RoadLine", (left + 0.4, right - 0.4), (z, z + 3.2), dash_x=(1.5, 0.75))
    weather = WEATHER[world.condition]
    if rng.random() < weather.puddles:
        for _ in range(int(rng.integers(1, 4))):
            _pour(world, rng, rng.uniform(left + 1.2, right - 0.8), rng.uniform(3.2, 7.5))
    if rng.random() < 0.3:
        # a ditch of standing water in the verge
        side = int(rng.choice([-1, 1]))
        first = profile.verge_first[side > 0]
        inner = profile.kerb(side) + side * (0.0 if first else profile.walk)
        span = sorted((inner + side * 0.3, inner + side * (profile.verge - 0.3)))
        z = abs(inner) * rng.uniform(1.0, 1.6)
        world.patch("Water", (span[0], span[1]), (z, z + rng.uniform(6, 14)), colour=_mirror(world))


def _mirror(world: World) -> Colour:
    """Colour of standing water: asphalt under a 55 % reflection of the sky, relative to light."""
    weather = WEATHER[world.condition]
    light = weather.ambient + weather.sun * 0.5
    r, g, b = (
        0.45 * a + 0.55 * min(s / light, 1.0) for a, s in zip(ASPHALT, weather.sky, strict=True)
    )
    return r, g, b


def _pour(world: World, rng: np.random.Generator, x: float, z: float) -> None:
    width, length = rng.uniform(1.8, 3.2), rng.uniform(2.2, 4.5)
    span = (x - width / 2, x + width / 2)
    world.patch("Water", span, (z, z + length), round=True, colour=_mirror(world))


def _colour(profile: Profile, rng: np.random.Generator) -> Colour:
    return profile.facades[int(rng.integers(len(profile.facades)))]


def _build_facades(world: World, profile: Profile, side: int, rng: np.random.Generator) -> None:
    z = -rng.uniform(0, 5)
    face = profile.facade(side)
    while z < END:
        length = rng.uniform(8, 14)
        kind = rng.choice(["Building", "Wall", "Fence", "open"], p=[0.55, 0.17, 0.17, 0.11])
        colour = _colour(profile, rng)
        if kind == "Building":
            size = (9.0, rng.uniform(7, 17), length - 0.6)
            world.solid(
                "Building", face + side * 4.5, z, size, colour=colour, pattern=Pattern.WINDOWS
            )
        elif kind == "Wall":
            size = (0.6, rng.uniform(2.6, 3.8), length)
            world.solid("Wall", face + side * 0.3, z, size, colour=colour)
        elif kind == "Fence":
            size = (0.3, rng.uniform(1.7, 2.2), length)
            world.solid("Fence", face + side * 0.15, z, size, holes=Holes.PICKETS)
        if kind != "Building" and rng.random() < 0.6:
            # something to see above the barrier
            far = face + side * rng.uniform(9, 14)
            size = (8.0, rng.uniform(7, 14), length)
            world.solid("Building", far + side * 4, z, size, colour=colour, pattern=Pattern.WINDOWS)
        z += length


def _build_near_barriers(world: World, profile: Profile, rng: np.random.Generator) -> None:
    """A fence, a wall and a guard rail close enough to cover more than a few pixels."""
    sides = rng.permutation([-1, 1])
    for name, side in (("Fence", int(sides[0])), ("Wall", int(sides[1]))):
        if rng.random() < 0.75:
            x = profile.kerb(side) + side * rng.uniform(1.6, 2.6)
            z, length = abs(x) * rng.uniform(0.9, 1.3), rng.uniform(5, 9)
            colour = _colour(profile, rng)
            if name == "Fence":
                size = (0.35, rng.uniform(1.5, 1.9), length)
                world.solid("Fence", x, z, size, holes=Holes.PICKETS)
            else:
                world.solid("Wall", x, z, (0.35, rng.uniform(2.3, 3), length), colour=colour)
    for side in (-1, 1):
        if rng.random() < 0.5:
            x = profile.kerb(side) + side * 0.25
            z, length = abs(x) * rng.uniform(0.8, 1.3), rng.uniform(4, 8)
            world.solid("GroundRail", x, z, (0.25, 0.5, length), base=0.4)
            for post in np.arange(z + 0.2, z + length, 2.0):
                world.solid("GroundRail", x, float(post), (0.22, 0.4, 0.25))


def _build_end(world: World, profile: Profile, rng: np.random.Generator) -> None:
    """Close the view so that the sky does not reach the ground everywhere."""
    for x in (-26.0, 0.0, 26.0):
        if rng.random() < 0.7:
            size = (26.0, rng.uniform(8, 20), 8.0)
            world.solid(
                "Building", x, END + 5, size, colour=_colour(profile, rng), pattern=Pattern.WINDOWS
            )


def _build_bridge(world: World, profile: Profile, rng: np.random.Generator) -> None:
    z, base = rng.uniform(9, 20), rng.uniform(5.2, 6.2)
    colour, length = _colour(profile, rng), rng.uniform(4, 7)
    world.solid("Bridge", 0.0, z, (70.0, rng.uniform(1.8, 2.6), length), base=base, colour=colour)
    for side in (-1, 1):
        x = profile.kerb(side) + side * (profile.walk + 0.5)
        world.solid("Bridge", x, z + 0.4, (1.3, base, length - 0.8), colour=colour)


def _plant(world: World, profile: Profile, rng: np.random.Generator) -> None:
    """Trees and bushes from beside the road to the façades."""
    for side in (-1, 1):
        for _ in range(int(rng.integers(2, 5))):
            x = profile.kerb(side) + side * rng.uniform(1.2, profile.walk + profile.verge - 0.3)
            z = abs(x) + rng.uniform(0, 16)
            if rng.random() < 0.6:
                wide, tall, base = rng.uniform(3, 4.6), rng.uniform(3, 4.5), rng.uniform(2.2, 3.2)
                trunk = (0.5, base + 1, 0.5)
                world.solid("Vegetation", x, z + wide / 2 - 0.25, trunk, colour=BARK)
                crown = (wide, tall, wide)
            else:
                base, wide = -0.3, rng.uniform(1.5, 2.4)
                crown = (wide, rng.uniform(1.5, 2.2), wide)
            world.solid("Vegetation", x, z, crown, base=base, round=True, holes=Holes.LEAVES)
