"""One sample: from its name to the six images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .camera import expose
from .catalogue import WEATHER, Weather
from .config import SyntheticConfig
from .plan import Frame
from .render import Geometry, cast
from .rng import stream
from .sensors import disparity_depth, events, grey_depth, hha, lidar
from .shade import LUMINANCE, illuminate, surface, through_air
from .street import build_street, draw_profile
from .traffic import place_furniture, place_vehicles
from .world import FloatArray, Tables, World

Image = NDArray[np.uint8]

_LOW_RESOLUTION = 512 / 1042
_RIM_SHARE = 0.003
_HOOD_SHARE = 0.15


def build_world(frame: Frame, seed: int) -> World:
    """World before the camera: the street's profile is the scene's, the rest the frame's."""
    test = frame.split == "test"
    profile = draw_profile(stream(seed, *frame.key[:-1], "profile"), test)
    world = World(frame.condition)
    build_street(world, profile, stream(seed, *frame.key, "street"))
    place_vehicles(world, profile, stream(seed, *frame.key, "vehicles"), dense=test)
    place_furniture(world, profile, stream(seed, *frame.key, "furniture"))
    return world


def render_frame(frame: Frame, config: SyntheticConfig) -> dict[str, Image]:
    """The six images of a sample, a pure function of its name and the content settings.

    Args:
        frame: a frame from ``plan``.
        config: seed, size and LiDAR mode.

    Returns:
        Per folder: ``img`` ``[S, S, 3]`` (``[S, S, 4]`` in one scene of seven), ``hha``, ``event``
        and ``lidar`` ``[S, S, 3]``, ``depth`` ``[S, S]``, ``semantic`` ``[S, S, 4]`` with the raw
        id in the red channel. Events of ``eventlowres`` frames have 512/1042 of the side.
    """
    weather = WEATHER[frame.condition]
    world = build_world(frame, config.seed)
    tables = world.tables()
    light = _sun(frame, config.seed)
    salt = int(stream(config.seed, *frame.key, "texture").integers(1 << 16))

    def rng(name: str) -> np.random.Generator:
        return stream(config.seed, *frame.key, name)

    geometry = cast(world, config.size)
    points = surface(geometry, tables)
    factor = illuminate(geometry, points, tables, weather, light, salt)
    glow = np.asarray(weather.sky, np.float32)
    radiance = through_air(
        factor[..., None] * tables.albedo[geometry.primitive], geometry, weather, glow
    )
    rgb = expose(
        radiance, geometry, weather, rng("camera"), condition=frame.condition, case=frame.case
    )
    if (frame.map + 5 * frame.point) % 7 == 0:
        rgb = np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], axis=-1)

    noise = rng("depth")
    depth = disparity_depth(geometry, weather, noise)

    def luminance(view: Geometry, shade: FloatArray) -> FloatArray:
        grey = tables.albedo @ LUMINANCE
        return through_air(shade * grey[view.primitive], view, weather, float(glow @ LUMINANCE))

    if frame.case == "eventlowres":
        side = round(config.size * _LOW_RESOLUTION)
        first = cast(world, side)
        before = luminance(first, _relight(first, tables, weather, light, salt))
    else:
        side, first, before = config.size, geometry, radiance @ LUMINANCE
    second = cast(world, side, time=1)
    after = luminance(second, _relight(second, tables, weather, light, salt))

    return {
        "img": rgb,
        "hha": hha(depth, geometry, points, noise),
        "depth": grey_depth(depth),
        "event": events(before, after, tables.flicker[first.primitive], weather, rng("event")),
        "lidar": lidar(
            geometry,
            points,
            tables,
            weather,
            rng("lidar"),
            mode=config.lidar,
            jitter=frame.case == "lidarjitter",
        ),
        "semantic": _annotate(geometry, tables, rng("semantic")),
    }


def _relight(
    geometry: Geometry, tables: Tables, weather: Weather, light: FloatArray, salt: int
) -> FloatArray:
    return illuminate(geometry, surface(geometry, tables), tables, weather, light, salt)


def _sun(frame: Frame, seed: int) -> FloatArray:
    """Unit vector to the sun of the scene; lower in the test split."""
    rng = stream(seed, *frame.key[:-1], "sun")
    turn, low = rng.uniform(0, 2 * np.pi), frame.split == "test"
    height = np.deg2rad(rng.uniform(15, 35) if low else rng.uniform(35, 65))
    flat = np.cos(height)
    return np.array([np.sin(turn) * flat, np.sin(height), -np.cos(turn) * flat], np.float32)


def _annotate(geometry: Geometry, tables: Tables, rng: np.random.Generator) -> Image:
    """Raw ids 1..25 in red; a few unlabelled rims (0), in some frames the hood (255)."""
    label = geometry.label
    raw = tables.class_id[label] + np.uint8(1)
    size = len(label)
    rim = np.zeros(label.shape, bool)
    rim[:, 1:] = raw[:, 1:] != raw[:, :-1]
    candidates = np.flatnonzero(rim)
    wanted = min(len(candidates), round(_RIM_SHARE * label.size))
    raw.ravel()[rng.choice(candidates, wanted, replace=False)] = 0
    if rng.random() < _HOOD_SHARE:
        column = np.linspace(-1, 1, size)
        top = size * (0.97 + 0.05 * column**2)
        raw[np.arange(size)[:, None] >= top] = 255
    rest = rng.integers(0, 256, (size, size, 2), dtype=np.uint8)
    solid = np.full((size, size, 1), 255, np.uint8)
    return np.concatenate([raw[..., None], rest, solid], axis=-1)
