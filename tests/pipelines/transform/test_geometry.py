from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from fastseg.pipelines.transform.geometry import (
    Axis,
    Geometry,
    GeometryDraws,
    draw,
    eval_geometry,
    train_geometry,
)
from fastseg.pipelines.transform.resample import resize_bilinear, resize_nearest

SIZES = [(64, 64, 64), (40, 56, 32), (131, 97, 64)]  # height, width, crop
DRAWS = [
    GeometryDraws(flip, scale, top, left)
    for flip, scale, (top, left) in itertools.product(
        (False, True), (0.5, 0.77, 1.0, 2.0), ((0.0, 0.0), (0.31, 0.99))
    )
]


def whole_then_crop(image: np.ndarray, geometry: Geometry, mode: str) -> np.ndarray:
    """The published order in float64: flip, resize the whole image, crop."""
    rows, cols = geometry.rows, geometry.cols
    flipped = image[..., ::-1].copy() if cols.flip else image
    options = {"align_corners": False} if mode == "bilinear" else {}
    size = (rows.scaled, cols.scaled)
    resized = interpolate(torch.from_numpy(flipped)[None].double(), size=size, mode=mode, **options)
    window = resized[0, :, rows.offset :, cols.offset :]
    return window[:, : rows.length, : cols.length].numpy()


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_pixels_equal_resize_then_crop(height: int, width: int, size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, height, width), dtype=np.uint8)
    for draws in DRAWS:
        geometry = train_geometry(draws, height, width, size)
        nearest = resize_nearest(image, geometry.rows, geometry.cols)
        np.testing.assert_array_equal(nearest, whole_then_crop(image, geometry, "nearest"))
        linear = resize_bilinear(image, geometry.rows, geometry.cols)
        # half a level of rounding, and what float32 weights cost
        error = np.abs(linear - whole_then_crop(image, geometry, "bilinear"))
        assert error.max() < 0.5 + 1e-3


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_the_window_stays_inside(height: int, width: int, size: int) -> None:
    for index in range(300):
        geometry = train_geometry(draw(0, 0, index, (0.5, 2.0)), height, width, size)
        for axis in (geometry.rows, geometry.cols):
            assert 0 <= axis.offset <= axis.scaled - axis.length
            assert axis.length == min(size, axis.scaled)
            assert axis.out == size
            assert 0 <= axis.nearest().min() <= axis.nearest().max() < axis.source


def test_scale_one_brings_the_short_side_to_the_crop() -> None:
    for side, size in ((1042, 1024), (128, 96)):
        rows = train_geometry(GeometryDraws(False, 1.0, 0.5, 0.5), side, side, size).rows
        assert (rows.scaled, rows.offset, rows.length) == (size, 0, size)
    wide = train_geometry(GeometryDraws(False, 0.5, 0.0, 0.0), 100, 200, 64)
    assert (wide.rows.scaled, wide.cols.scaled) == (32, 64)
    # the published rule also bounds the long side: 4:1
    very_wide = train_geometry(GeometryDraws(False, 1.0, 0.0, 0.0), 32, 320, 64)
    assert (very_wide.rows.scaled, very_wide.cols.scaled) == (26, 256)


def test_crops_reach_both_ends() -> None:
    offsets = {
        train_geometry(draw(0, 0, index, (1.1, 1.1)), 64, 64, 64).rows.offset
        for index in range(400)
    }
    assert offsets == set(range(int(64 * 1.1) - 64 + 1))


def test_draws_follow_their_key() -> None:
    first = draw(1, 2, 3, (0.5, 2.0))
    assert first == draw(1, 2, 3, (0.5, 2.0))
    others = [draw(9, 2, 3, (0.5, 2.0)), draw(1, 9, 3, (0.5, 2.0)), draw(1, 2, 9, (0.5, 2.0))]
    assert len({first.scale, *(other.scale for other in others)}) == 4


def test_draws_have_the_stated_law() -> None:
    many = [draw(0, 0, index, (0.5, 2.0), flip=0.25) for index in range(3000)]
    assert abs(np.mean([d.flip for d in many]) - 0.25) < 0.03
    scales = np.array([d.scale for d in many])
    assert 0.5 <= scales.min() < 0.51
    assert 1.99 < scales.max() <= 2.0
    assert abs(scales.mean() - 1.25) < 0.03
    assert not any(draw(0, 0, index, (1, 1), flip=0.0).flip for index in range(100))
    assert all(draw(0, 0, index, (1, 1), flip=1.0).flip for index in range(100))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("source", "scaled", "offset", "length"), [(97, 61, 5, 40), (64, 128, 64, 64)]
)
def test_regions_describe_the_same_pixels(
    source: int, scaled: int, offset: int, length: int, flip: bool
) -> None:
    axis = Axis(source, scaled, offset, length, length, flip)
    steps = (np.arange(length) + 0.5) / length

    start, end = axis.region(nearest=True)
    np.testing.assert_array_equal(np.floor(start + (end - start) * steps), axis.nearest())

    start, end = axis.region(nearest=False)
    low, high, weight = axis.bilinear()
    position = (start + (end - start) * steps - 0.5).clip(0, source - 1)
    np.testing.assert_allclose(low + (high - low) * weight, position, atol=1e-5)


def test_evaluation_sees_the_whole_image() -> None:
    square = eval_geometry(1042, 1042, 1024)
    assert square.rows == square.cols == Axis(1042, 1024, 0, 1024, 1024)
    wide = eval_geometry(1080, 1920, 512)  # 910.2 columns, rounded up to a multiple of 32
    assert (wide.rows.out, wide.cols.out) == (512, 928)
    assert wide.cols.nearest()[-1] >= 1917


def test_native_size_copies_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    geometry = eval_geometry(64, 64, 64)
    np.testing.assert_array_equal(resize_bilinear(image, geometry.rows, geometry.cols), image)
