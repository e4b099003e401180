"""Contents of the synthetic world, as data: materials per class, weather, sensor failures.

The materials hold the deliberate confusions that make every sensor worth having. Classes of a group
agree in all cues except that of the sensor which owns the distinction:

=====================  ============================================================================
camera                 RoadLine and Road; Ground and Terrain (soil colour); Bus and Truck (livery)
depth                  Fence and Wall; Pole and GroundRail and what stands behind; the kerb
events                 Dynamic and Static; TrafficLight and TrafficSign; TwoWheeler; rippling Water
LiDAR reflectivity     Building, Wall and Bridge; RailTrack and Road; Other and Static
=====================  ============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """Appearance of a class to each sensor.

    Attributes:
        albedo: linear RGB reflectance, 0..1.
        reflectivity: value that the LiDAR measures, 0..1; 0 never returns.
        roughness: relative amplitude of the surface texture, seen by the camera and, under ego
            motion, by the event sensor.
        flicker: amplitude of the change of log brightness between the two event exposures.
    """

    albedo: Colour
    reflectivity: float
    roughness: float = 0.12
    flicker: float = 0.0


CONCRETE: Final[Colour] = (0.45, 0.42, 0.40)
GALVANISED: Final[Colour] = (0.50, 0.50, 0.52)
ASPHALT: Final[Colour] = (0.19, 0.19, 0.20)
CLUTTER: Final[Colour] = (0.42, 0.24, 0.10)
BARK: Final[Colour] = (0.16, 0.12, 0.06)
PLATE: Final[Colour] = (0.78, 0.66, 0.08)

# in the order of DELIVER's train ids
MATERIALS: Final[dict[str, Material]] = {
    "Building": Material(CONCRETE, 0.30, 0.09),
    "Fence": Material((0.32, 0.25, 0.22), 0.45, 0.12),
    "Other": Material(CLUTTER, 0.95, 0.12),
    "Pedestrian": Material((0.50, 0.22, 0.26), 0.30, 0.20, 0.40),
    "Pole": Material(GALVANISED, 0.45, 0.06),
    "RoadLine": Material((0.80, 0.80, 0.76), 0.35, 0.06),
    "Road": Material(ASPHALT, 0.12, 0.09),
    "SideWalk": Material((0.50, 0.44, 0.45), 0.35, 0.10),
    "Vegetation": Material((0.10, 0.27, 0.06), 0.25, 0.50),
    "Cars": Material(GALVANISED, 0.60, 0.05),
    "Wall": Material(CONCRETE, 0.50, 0.12),
    "TrafficSign": Material(PLATE, 0.90, 0.05),
    "Sky": Material((0.45, 0.62, 0.90), 0.0, 0.0),
    "Ground": Material((0.46, 0.27, 0.12), 0.25, 0.28),
    "Bridge": Material(CONCRETE, 0.75, 0.10),
    "RailTrack": Material(ASPHALT, 0.80, 0.09),
    "GroundRail": Material(GALVANISED, 0.45, 0.06),
    "TrafficLight": Material(PLATE, 0.90, 0.05, 0.90),
    "Static": Material(CLUTTER, 0.30, 0.12),
    "Dynamic": Material(CLUTTER, 0.30, 0.12, 0.80),
    "Water": Material(ASPHALT, 0.0, 0.0, 0.45),
    "Terrain": Material((0.23, 0.38, 0.10), 0.25, 0.28),
    "TwoWheeler": Material((0.14, 0.14, 0.17), 0.45, 0.12, 0.60),
    "Bus": Material((0.75, 0.30, 0.04), 0.60, 0.05),
    "Truck": Material((0.30, 0.38, 0.55), 0.60, 0.05),
}
CLASS_ID: Final[dict[str, int]] = {name: i for i, name in enumerate(MATERIALS)}

CAR_COLOURS: Final[tuple[Colour, ...]] = (
    (0.55, 0.06, 0.06),
    (0.06, 0.12, 0.42),
    (0.70, 0.70, 0.72),
    (0.07, 0.07, 0.08),
    (0.28, 0.30, 0.32),
)
BUS_COLOURS: Final[tuple[Colour, ...]] = (
    (0.80, 0.34, 0.03),
    (0.78, 0.10, 0.05),
    (0.85, 0.50, 0.06),
)
TRUCK_COLOURS: Final[tuple[Colour, ...]] = (
    (0.20, 0.38, 0.62),
    (0.30, 0.45, 0.50),
    (0.62, 0.68, 0.75),
)
GLASS: Final[Colour] = (0.06, 0.09, 0.12)
CLOTHES: Final[tuple[Colour, ...]] = (
    (0.50, 0.22, 0.26),
    (0.20, 0.24, 0.50),
    (0.55, 0.48, 0.40),
    (0.16, 0.34, 0.32),
)
# façades, walls and bridges of a scene draw from one palette, so that colour tells none apart
FACADES: Final[tuple[Colour, ...]] = (
    CONCRETE,
    (0.52, 0.40, 0.31),
    (0.36, 0.37, 0.40),
    (0.55, 0.50, 0.40),
)
TEST_FACADES: Final[tuple[Colour, ...]] = (
    (0.40, 0.30, 0.28),
    (0.48, 0.46, 0.50),
    (0.33, 0.36, 0.30),
)


@dataclass(frozen=True)
class Weather:
    """Light, air and sensor noise of a condition.

    Attributes:
        ambient: diffuse light, relative to full daylight.
        sun: directional light.
        extinction: extinction of the air, per metre.
        sky: linear RGB radiance of the sky and of the light scattered by the air.
        headlight: strength of the ego vehicle's lamps.
        camera_noise: factor on the camera's noise.
        event_noise: sd of the log brightness noise.
        depth_noise: factor on the disparity error.
        false_returns: share of LiDAR rays answered by drops at 2..9 m.
        puddles: probability that water stands on the road.
    """

    ambient: float
    sun: float
    extinction: float
    sky: Colour
    headlight: float = 0.0
    camera_noise: float = 1.0
    event_noise: float = 0.045
    depth_noise: float = 1.0
    false_returns: float = 0.0
    puddles: float = 0.7


WEATHER: Final[dict[str, Weather]] = {
    "cloud": Weather(0.70, 0.15, 0.002, (0.62, 0.66, 0.72)),
    "fog": Weather(
        0.75, 0.10, 0.085, (0.66, 0.68, 0.70), depth_noise=1.7, event_noise=0.05, false_returns=0.06
    ),
    "night": Weather(
        0.012,
        0.0,
        0.001,
        (0.006, 0.007, 0.014),
        headlight=0.55,
        camera_noise=2.0,
        event_noise=0.10,
        depth_noise=2.7,
    ),
    "rain": Weather(
        0.40,
        0.10,
        0.014,
        (0.40, 0.43, 0.47),
        depth_noise=1.7,
        event_noise=0.06,
        false_returns=0.02,
        puddles=0.95,
    ),
    "sun": Weather(0.35, 0.90, 0.001, (0.36, 0.56, 0.92)),
}
CONDITIONS: Final[tuple[str, ...]] = tuple(WEATHER)
CASES: Final[tuple[str, ...]] = (
    "motionblur",
    "overexposure",
    "underexposure",
    "lidarjitter",
    "eventlowres",
)
EXPOSURE_GAIN: Final[dict[str, float]] = {"overexposure": 7.0, "underexposure": 0.07}
