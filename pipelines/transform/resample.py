"""Resizing of a window by the two rules: definitions in NumPy, and their form in C."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.spec import Interpolation
from ..native import build as native
from ..native.build import Array, Functions
from .geometry import Axis, Geometry

_DTYPES = ("uint8", "uint16", "float32")


def resize_nearest(source: Array, rows: Axis, cols: Axis) -> Array:
    """Window of ``source [C, H, W]`` rescaled by legacy nearest: ``[C, h, w]``."""
    window: Array = source.take(rows.nearest(), axis=1).take(cols.nearest(), axis=2)
    return window


def resize_bilinear(source: Array, rows: Axis, cols: Axis) -> Array:
    """Window of ``source [C, H, W]`` rescaled bilinearly in float32: ``[C, h, w]``.

    Half-pixel centres, no antialias; equal to ``interpolate(..., align_corners=False)`` of the
    whole image followed by flip and crop, up to one level where float32 rounding decides. Integer
    types are rounded to the nearest code.
    """
    if _same_size(rows, cols):
        return resize_nearest(source, rows, cols)
    top, bottom, weight = rows.bilinear()
    left, right, across = cols.bilinear()
    # only the columns that are needed take part in the vertical pass
    first, last = min(left.min(), right.min()), max(left.max(), right.max()) + 1
    strip = source[:, :, first:last]
    upper = strip.take(top, axis=1).astype(np.float32)
    lower = strip.take(bottom, axis=1).astype(np.float32)
    lower -= upper
    lower *= weight[:, None]
    upper += lower
    start = upper.take(left - first, axis=2)
    end = upper.take(right - first, axis=2)
    end -= start
    end *= across
    start += end
    if source.dtype.kind == "u":
        np.rint(start, out=start)
    window: Array = start.astype(source.dtype, copy=False)
    return window


class Resampler:
    """Carries out one ``Geometry`` on any number of images of its source size.

    Args:
        geometry: the mapping.
        functions: the C functions of ``compiled``; None for NumPy.
    """

    def __init__(self, geometry: Geometry, functions: Functions | None) -> None:
        self._rows, self._cols = geometry.rows, geometry.cols
        self._functions = functions

    def __call__(self, source: Array, interpolation: Interpolation, target: Array) -> None:
        """Fill ``target [C, h, w]`` with the window of ``source [C, H, W]``.

        Both have one dtype, and pixels of a row of ``target`` are neighbours in memory.
        """
        if interpolation == "bilinear" and _same_size(self._rows, self._cols):
            interpolation = "nearest"
        if self._functions is None:
            define = resize_nearest if interpolation == "nearest" else resize_bilinear
            target[...] = define(source, self._rows, self._cols)
            return
        source, (lane, stride, pixel) = native.plain(source)
        function = self._functions[f"{interpolation}_{source.dtype.name}"]
        head = (source.ctypes.data, lane, stride, len(source))
        tail = (target.ctypes.data, *native.steps(target)[:2])
        if interpolation == "nearest":
            rows, cols = self._nearest
            function(*head, *_vectors(rows), len(rows), *_vectors(cols * pixel), len(cols), *tail)
            return
        (top, bottom, down), (left, right, across), first, last = self._bilinear
        # a row of packed pixels is one vector: all its channels are blended in one pass
        rows = np.empty(2 * last * pixel + 32, np.float32)
        function(
            *(*head, int(pixel > 1)),
            *(*_vectors(top, bottom, down), len(top)),
            *(*_vectors(left, right, across), len(left)),
            *(first, last, *_vectors(rows)),
            *tail,
        )

    @cached_property
    def _nearest(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self._rows.nearest().astype(np.int32), self._cols.nearest().astype(np.int32)

    @cached_property
    def _bilinear(self) -> tuple[Any, Any, int, int]:
        """(low, high, weight) of the rows and of the columns; first column and behind the last."""
        rows, cols = (
            (low.astype(np.int32), high.astype(np.int32), weight)
            for low, high, weight in (self._rows.bilinear(), self._cols.bilinear())
        )
        left, right, _ = cols
        first, last = min(left.min(), right.min()), max(left.max(), right.max()) + 1
        return rows, cols, int(first), int(last)


def resize(source: Array, geometry: Geometry, interpolation: Interpolation) -> Array:
    """The window of ``source [C, H, W]`` as a new array, without padding."""
    size = geometry.rows.length, geometry.cols.length
    window: Array = np.empty((len(source), *size), source.dtype)
    Resampler(geometry, compiled())(source, interpolation, window)
    return window


@lru_cache(maxsize=1)
def compiled() -> Functions | None:
    """The C functions, or None where NumPy serves."""
    loaded = native.library().loaded
    if loaded is None:
        return None
    functions = _bound(loaded)
    return functions if _agrees(functions) else None


def _bound(loaded: CDLL) -> Functions:
    pointer, step, number = native.POINTER, native.STEP, native.INT
    head, tail = (pointer, step, step, number), (pointer, step, step)
    vector, blend = (pointer, number), (pointer, pointer, pointer, number)
    return {
        **native.bind(loaded, "nearest", _DTYPES, *head, *vector, *vector, *tail),
        **native.bind(
            *(loaded, "bilinear", _DTYPES),
            *(*head, number, *blend, *blend, number, number, pointer, *tail),
        ),
    }


def _agrees(functions: Functions) -> bool:
    """True if a small image comes out with the bits of NumPy: compilers differ."""
    geometry = Geometry(Axis(37, 53, 3, 40, 40), Axis(41, 29, 2, 25, 25, flip=True))
    codes = np.arange(37 * 41 * 3, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(16)
    rules: tuple[Interpolation, ...] = ("nearest", "bilinear")
    for dtype, rule in product(_DTYPES, rules):
        source = codes.astype(dtype).reshape(37, 41, 3).transpose(2, 0, 1)
        got, wanted = np.empty((2, 3, 40, 25), dtype)
        Resampler(geometry, functions)(source, rule, got)
        Resampler(geometry, None)(source, rule, wanted)
        if not np.array_equal(got, wanted):
            return False
    return True


def _same_size(rows: Axis, cols: Axis) -> bool:
    return rows.scaled == rows.source and cols.scaled == cols.source


def _vectors(*arrays: Array) -> Sequence[Any]:
    # such a pointer keeps its array alive
    return [array.ctypes.data_as(native.POINTER) for array in arrays]
