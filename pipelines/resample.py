"""Resizing of a window by the two rules: definitions in NumPy, and their form in C."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Axis, Geometry
from .native import library
from .spec import Interpolation

Array = NDArray[Any]
"""uint8 or uint16 codes, or float32 values."""
_Pointer, _Stride, _Int = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
_DTYPES = ("uint8", "uint16", "float32")
Functions = dict[tuple[str, str], Any]


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

        Both have one dtype; the axis that is fastest in memory is W in ``target``, and W or C in
        ``source``. Other layouts are copied first.
        """
        if self._functions is None:
            define = resize_nearest if interpolation == "nearest" else resize_bilinear
            target[...] = define(source, self._rows, self._cols)
            return
        if interpolation == "bilinear" and _same_size(self._rows, self._cols):
            interpolation = "nearest"
        function = self._functions[interpolation, source.dtype.name]
        if not _is_plain(source):
            source = np.ascontiguousarray(source)
        size = source.itemsize
        lane, stride, pixel = (step // size for step in source.strides)
        target_lane, target_stride = (step // size for step in target.strides[:2])
        head = (source.ctypes.data, lane, stride, len(source))
        tail = (target.ctypes.data, target_lane, target_stride)
        if interpolation == "nearest":
            rows, cols = self._nearest
            function(*head, *_vector(rows), *_vector(cols * np.int32(pixel)), *tail)
            return
        (top, bottom, down), (left, right, across), first, last = self._bilinear
        # a row of packed pixels is one vector: all its channels are blended in one pass
        packed = pixel == len(source) > 1
        row = np.empty((last + 1) * pixel, np.float32)
        function(
            *head,
            int(packed),
            *_pointers(top, bottom, down),
            len(top),
            *_pointers(left * np.int32(pixel), right * np.int32(pixel), across),
            len(left),
            first * pixel,
            last * pixel,
            row.ctypes.data,
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
    Resampler(geometry, compiled()[0])(source, interpolation, window)
    return window


def _same_size(rows: Axis, cols: Axis) -> bool:
    return rows.scaled == rows.source and cols.scaled == cols.source


def _is_plain(source: Array) -> bool:
    """Whether the C form can walk it: rows of pixels, or of packed pixels."""
    lane, stride, pixel = source.strides
    planes = pixel == source.itemsize
    packed = lane == source.itemsize and pixel == lane * len(source)
    return (planes or packed) and stride > 0 and lane > 0


def _vector(index: NDArray[np.int32]) -> tuple[Any, int]:
    return _pointers(index)[0], len(index)


def _pointers(*arrays: Array) -> Sequence[Any]:
    # such a pointer keeps its array alive
    return [array.ctypes.data_as(_Pointer) for array in arrays]


@lru_cache(maxsize=1)
def compiled() -> tuple[Functions | None, str]:
    """The C functions by (rule, dtype) and where they lie; or None for NumPy, and why."""
    loaded, note = library()
    if loaded is None:
        return None, note
    vector = (_Pointer, _Int)
    pair = (_Pointer, _Pointer, _Pointer, _Int)
    head = (_Pointer, _Stride, _Stride, _Int)
    tail = (_Pointer, _Stride, _Stride)
    arguments = {
        "nearest": (*head, *vector, *vector, *tail),
        "bilinear": (*head, _Int, *pair, *pair, _Int, _Int, _Pointer, *tail),
    }
    functions = {}
    for rule, types in arguments.items():
        for dtype in _DTYPES:
            function = getattr(loaded, f"{rule}_{dtype}")
            function.argtypes, function.restype = types, None
            functions[rule, dtype] = function
    if not _agrees(functions):
        return None, f"{note} disagrees with NumPy"
    return functions, note


def _agrees(functions: Functions) -> bool:
    """Whether a small image comes out as in NumPy: compilers differ."""
    rows, cols = Axis(37, 53, 3, 40, 40), Axis(41, 29, 2, 25, 25, flip=True)
    resampler = Resampler(Geometry(rows, cols), functions)
    codes = np.arange(37 * 41 * 3, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(16)
    for dtype in _DTYPES:
        source = codes.astype(dtype).reshape(37, 41, 3).transpose(2, 0, 1)
        rules: tuple[tuple[Interpolation, Any], ...]
        rules = (("nearest", resize_nearest), ("bilinear", resize_bilinear))
        for rule, define in rules:
            target = np.empty((3, 40, 25), dtype)
            resampler(source, rule, target)
            if not np.array_equal(target, define(source, rows, cols)):
                return False
    return True
