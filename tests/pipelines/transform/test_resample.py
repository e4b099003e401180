"""The C form of the resampler against its definition in NumPy, bit by bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastseg.pipelines.native import build as native
from fastseg.pipelines.transform import resample
from fastseg.pipelines.transform.geometry import Axis, Geometry, GeometryDraws, train_geometry
from fastseg.pipelines.transform.resample import (
    Resampler,
    compiled,
    resize_bilinear,
    resize_nearest,
)
from tests.support.optional_hypothesis import given, settings, st

needs_compiler = pytest.mark.skipif(compiled() is None, reason=f"no C: {native.library()[1]}")
DTYPES = ("uint8", "uint16", "float32")


def noise(dtype: str, *shape: int) -> np.ndarray:
    g = np.random.default_rng(0)
    if dtype == "float32":
        return g.normal(0, 30, shape).astype(np.float32)
    return g.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def layouts(image: np.ndarray) -> dict[str, np.ndarray]:
    """The same ``[3, H, W]`` in several memory layouts."""
    wide = np.zeros((image.shape[1], image.shape[2] + 5, 3), image.dtype)
    wide[:, 5:] = image.transpose(1, 2, 0)
    return {
        "planes": image,
        "packed": np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1),
        "without its first columns": wide[:, 5:].transpose(2, 0, 1),
        "reversed channels": np.ascontiguousarray(image[::-1])[::-1],
        "one channel thrice": np.broadcast_to(image[:1], image.shape),
    }


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 64), (40, 57, 32), (131, 97, 64)])
def test_c_equals_numpy(dtype: str, height: int, width: int, size: int) -> None:
    image = noise(dtype, 3, height, width)
    for flip, scale in itertools.product((False, True), (0.5, 0.77, 1.0, 1.31, 2.0)):
        geometry = train_geometry(GeometryDraws(flip, scale, 0.3, 0.8), height, width, size)
        window = geometry.rows.length, geometry.cols.length
        for name, source in layouts(image).items():
            # a target inside a larger array, as in a batch with padding
            whole = np.full((3, size, size), 9, dtype)
            target = whole[:, : window[0], : window[1]]
            for rule, define in (("nearest", resize_nearest), ("bilinear", resize_bilinear)):
                expected = define(np.ascontiguousarray(source), geometry.rows, geometry.cols)
                Resampler(geometry, compiled())(source, rule, target)
                np.testing.assert_array_equal(target, expected, err_msg=f"{name} {rule}")
                Resampler(geometry, None)(source, rule, target)
                np.testing.assert_array_equal(target, expected)
            assert (whole[:, window[0] :] == 9).all()
            assert (whole[:, :, window[1] :] == 9).all()


axes = st.builds(
    lambda source, scaled, start, length, flip: Axis(
        source,
        scaled,
        int(start * scaled),
        max(1, int(length * (scaled - int(start * scaled)))),
        scaled,
        flip,
    ),
    st.integers(1, 40),
    st.integers(1, 80),
    st.floats(0, 0.99),
    st.floats(0, 1),
    st.booleans(),
)


@needs_compiler
@settings(deadline=None, max_examples=150)
@given(axes, axes, st.sampled_from(DTYPES), st.booleans())
def test_c_equals_numpy_for_any_window(rows: Axis, cols: Axis, dtype: str, packed: bool) -> None:
    image = noise(dtype, 3, rows.source, cols.source)
    source = layouts(image)["packed"] if packed else image
    for rule, define in (("nearest", resize_nearest), ("bilinear", resize_bilinear)):
        target = np.empty((3, rows.length, cols.length), dtype)
        Resampler(Geometry(rows, cols), compiled())(source, rule, target)
        np.testing.assert_array_equal(target, define(image, rows, cols))


@needs_compiler
def test_wrong_machine_code_is_not_used() -> None:
    functions = compiled()
    assert functions is not None
    assert resample._agrees(functions)
    swapped = {**functions, "bilinear_uint16": lambda *_: None}
    assert not resample._agrees(swapped)
