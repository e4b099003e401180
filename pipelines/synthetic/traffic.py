"""The movable part of a scene: vehicles on the lanes, people and furniture on the pavements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .catalogue import BUS_COLOURS, CAR_COLOURS, CLOTHES, GLASS, TRUCK_COLOURS, Colour
from .street import Profile
from .world import Holes, Pattern, World

Place = Callable[[World, np.random.Generator, float, float, int], None]


def _pick(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _car(world: World, rng: np.random.Generator, x: float, z: float, drive: float) -> float:
    colour, motion = _pick(CAR_COLOURS, rng), (0.0, drive)
    world.solid("Cars", x, z, (1.95, 0.75, 4.3), base=0.3, colour=colour, motion=motion)
    world.solid("Cars", x, z + 0.9, (1.7, 0.6, 2.3), base=1.05, colour=GLASS, motion=motion)
    world.solid("Cars", x, z + 1.0, (1.6, 0.12, 2.1), base=1.65, colour=colour, motion=motion)
    return 4.3


def _coach(
    world: World, rng: np.random.Generator, x: float, z: float, drive: float, name: str
) -> float:
    """Bus and truck: one box for both, told apart by livery and windows only."""
    colour = _pick(BUS_COLOURS if name == "Bus" else TRUCK_COLOURS, rng)
    pattern = Pattern.BAND if name == "Bus" else Pattern.PLAIN
    size, motion = (2.6, 2.9, 8.5), (0.0, drive)
    world.solid(name, x, z, size, base=0.35, colour=colour, pattern=pattern, motion=motion)
    return size[2]


def place_vehicles(
    world: World, profile: Profile, rng: np.random.Generator, *, dense: bool = False
) -> None:
    """Fill both lanes from near to far.

    Bus and truck come first in most frames, since their boxes are what the camera alone can tell
    apart and a coach far away is a handful of pixels.
    """
    coaches = [str(name) for name in rng.permutation(["Bus", "Truck"]) if rng.random() < 0.7]
    queue = [*coaches, "Cars", "Cars", "Cars"] + ["Cars"] * (2 if dense else 0)
    if rng.random() < 0.5:
        queue[: len(coaches) + 1] = [str(n) for n in rng.permutation(queue[: len(coaches) + 1])]
    own, oncoming = 0.35 * profile.right, (profile.left - 1.3) / 2 - 0.3
    front = {own: rng.uniform(9, 14), oncoming: rng.uniform(6.5, 11)}
    lanes = [oncoming, own] if rng.random() < 0.5 else [own, oncoming]
    for i, name in enumerate(queue):
        lane = lanes[i % 2]
        drive = 0.0
        if rng.random() < 0.7:
            drive = rng.uniform(0.25, 0.7) * (1 if lane == own else -1)
        x, z = lane + rng.uniform(-0.3, 0.3), front[lane]
        if name == "Cars":
            length = _car(world, rng, x, z, drive)
        else:
            length = _coach(world, rng, x, z, drive, name)
        front[lane] = z + length + rng.uniform(2.5, 9)


def _pole(world: World, rng: np.random.Generator, x: float, z: float, side: int) -> None:
    world.solid("Pole", x, z, (0.4, rng.uniform(5, 7.5), 0.4))


def _plate(name: str) -> Place:
    """Sign and light: the same board on the same post; only the light flickers."""

    def place(world: World, rng: np.random.Generator, x: float, z: float, side: int) -> None:
        base = rng.uniform(2.3, 2.9)
        world.solid("Pole", x, z + 0.2, (0.34, base, 0.34))
        world.solid(name, x, z, (1.15, 1.7, 0.35), base=base, pattern=Pattern.GLYPH)

    return place


def _clutter(name: str) -> Place:
    """Static, dynamic and other things: crates of the same make."""

    def place(world: World, rng: np.random.Generator, x: float, z: float, side: int) -> None:
        size = (rng.uniform(1.0, 1.5), rng.uniform(1.1, 1.7), rng.uniform(0.7, 1.2))
        world.solid(name, x, z, size)

    return place


def _panel(world: World, rng: np.random.Generator, x: float, z: float, side: int) -> None:
    """A piece of fence across the pavement, its gaps facing the camera."""
    size = (rng.uniform(2, 2.8), rng.uniform(1.5, 1.9), 0.2)
    world.solid("Fence", x, z, size, holes=Holes.PICKETS)


def _pedestrian(world: World, rng: np.random.Generator, x: float, z: float, side: int) -> None:
    colour, motion = _pick(CLOTHES, rng), (float(rng.uniform(-0.08, 0.08)), 0.0)
    legs = (0.12, 0.12, 0.18)
    world.solid("Pedestrian", x, z, (0.46, 1.0, 0.35), colour=legs, motion=motion)
    body = (0.68, 0.7, 0.42)
    world.solid("Pedestrian", x, z, body, base=0.95, colour=colour, motion=motion)
    head = (0.36, 0.42, 0.36)
    skin = (0.55, 0.38, 0.30)
    world.solid("Pedestrian", x, z, head, base=1.6, colour=skin, round=True, motion=motion)


def _parked_car(world: World, rng: np.random.Generator, x: float, z: float, side: int) -> None:
    _car(world, rng, x, z, 0.0)


def _two_wheeler(world: World, rng: np.random.Generator, x: float, z: float, side: int) -> None:
    """Rider and machine, across or along the road."""
    across = rng.random() < 0.6
    machine = (2.1, 0.95, 0.4) if across else (0.6, 0.95, 2.1)
    motion = (float(rng.choice([-0.3, 0.3])), 0.0) if across else (0.0, float(rng.uniform(0, 0.4)))
    world.solid("TwoWheeler", x, z, machine, motion=motion)
    near = z if across else z + 0.8
    world.solid("TwoWheeler", x, near, (0.62, 0.95, 0.45), base=0.9, motion=motion)


_FURNITURE: tuple[tuple[Place, float], ...] = (
    (_plate("TrafficLight"), 1.7),
    (_plate("TrafficSign"), 1.7),
    (_pole, 1.3),
    (_parked_car, 1.4),
    (_panel, 1.2),
    (_pedestrian, 3.2),
    (_clutter("Static"), 2.0),
    (_clutter("Dynamic"), 2.0),
    (_clutter("Other"), 2.0),
)


def place_furniture(world: World, profile: Profile, rng: np.random.Generator) -> None:
    """Deal people and things to the free places along the kerbs, the nearest places first."""
    places: list[tuple[float, float, int]] = []
    for side in (-1, 1):
        for depth in range(6):
            for lateral in (0.55, 2.0, 3.5):
                x = profile.kerb(side) + side * lateral
                z = abs(x) + 0.9 + 1.7 * depth + rng.uniform(0, 0.9)
                places.append((x, z, side))
    # half of the wish for nearness, half of chance
    places.sort(key=lambda place: place[1] + rng.uniform(0, 6))
    crowd: list[Place] = []
    for place, mean in _FURNITURE:
        crowd += [place] * int(mean + rng.random())
    order = rng.permutation(len(crowd))
    for i, (x, z, side) in zip(order, places, strict=False):
        crowd[int(i)](world, rng, x, z, side)
    for _ in range(1 + int(rng.random() < 0.5)):
        x = rng.choice([profile.right - 0.8, profile.left + 0.9, -1.3])
        _two_wheeler(world, rng, float(x), abs(float(x)) + rng.uniform(3.2, 6), 0)
