"""The raw sensor files of MUSES to plain arrays (formats: timbroed/MUSES, ``processing/``)."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..tools.reading import check_regular, read_bytes
from .images import decode_image

POINT_FIELDS = ("x", "y", "z", "intensity", "ring", "timestamp")
"""Columns of a LiDAR file: metres (front, left, up), 0..255, number, seconds."""
AZIMUTHS = 400
"""Columns of a radar image: one every 0.9 degrees, the last one straight back."""
POLAR_HEADER = 11
"""Rows of a radar image before the range bins: seconds, nanoseconds, two unused, validity."""

_RATIO, _HARMLESS_BYTES = 1000, 64 << 20
"""Events may unpack to so many times the size of their file, or to so many bytes."""
_POINT_BYTES = 8 * len(POINT_FIELDS)


class Events(NamedTuple):
    """Events of one recording, in the order of the file.

    Attributes:
        x, y: pixel of the event camera.
        t: microseconds.
        p: 1 for brighter, 0 for darker.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    t: NDArray[np.int64]
    p: NDArray[np.int64]


def read_points(path: Path) -> NDArray[np.float64]:
    """A LiDAR sweep ``[N, 6]``; see ``POINT_FIELDS``.

    Raises:
        DataError: the file is missing, cut off, or has values that are not finite.
    """
    data = read_bytes(path)
    if not data or len(data) % _POINT_BYTES:
        raise DataError(
            f"{path} has {len(data)} bytes, which is no positive multiple of {_POINT_BYTES} (six "
            "64-bit floats per point); it is cut off or no LiDAR file. Fetch this file again",
            "damaged",
        )
    points = np.frombuffer(data, "<f8").reshape(-1, len(POINT_FIELDS))
    bad = len(points) - int(np.count_nonzero(np.isfinite(points).all(axis=1)))
    if bad:
        raise DataError(
            f"{path}: {bad} of {len(points)} points have values that are not finite; the file is "
            "damaged or not of 64-bit floats. Fetch it again",
            "value",
        )
    return points


def read_polar(path: Path) -> NDArray[np.uint8]:
    """A radar sweep ``[11 + bins, 400]``: header rows, then one row per range bin.

    Raises:
        DataError: the file is missing, damaged, not 8-bit, or of another shape.
    """
    # the SDK takes the first channel of OpenCV, which is blue
    sweep: NDArray[np.uint8] = decode_image(read_bytes(path), path)[:, :, 2]
    if sweep.shape[1] != AZIMUTHS or sweep.shape[0] <= POLAR_HEADER:
        raise DataError(
            f"{path} is {sweep.shape[1]} x {sweep.shape[0]} pixels; expected a polar radar image, "
            f"{AZIMUTHS} columns of azimuth and more than {POLAR_HEADER} rows. Unpack the radar "
            "archive of the download again; projected images belong into another folder",
            "size",
        )
    return np.ascontiguousarray(sweep)


def read_events(path: Path, last_us: int | None = None) -> Events:
    """Events of an HDF5 file with ``events/{x,y,t,p}``, or only its last ``last_us`` microseconds.

    Raises:
        DataError: the file is missing or damaged, h5py or a filter of HDF5 is not installed, or
            arrays are missing, of different length or of other values.
    """
    h5py = import_h5py()
    check_regular(path)
    if not path.is_file():
        raise DataError(f"cannot read {path}: no such file; restore it", "missing")
    try:
        with h5py.File(path, "r") as file:
            group = {name: _dataset(file, name, path) for name in Events._fields}
            lengths = {name: data.shape for name, data in group.items()}
            if len(set(lengths.values())) != 1 or len(lengths["x"]) != 1:
                raise DataError(
                    f"{path}: events/x, y, t, p have the shapes {list(lengths.values())}; expected "
                    "four vectors of one length. Fetch this file again",
                    "value",
                )
            _refuse_bomb(path, sum(int(data.nbytes) for data in group.values()))
            t = group["t"][:].astype(np.int64)
            keep = slice(None) if last_us is None or not len(t) else t >= t.max() - last_us
            x, y, p = (group[name][:][keep].astype(np.int64) for name in ("x", "y", "p"))
    except (OSError, KeyError, RuntimeError) as error:
        absent = _absent_filters(h5py, path)
        if absent:
            raise DataError(
                f"{path} is packed by the HDF5 filter {' and '.join(absent)}, which h5py does not "
                "have: pip install --upgrade hdf5plugin",
                "filter",
            ) from error
        raise DataError(
            f"{path} is damaged or no HDF5 file ({str(error).splitlines()[0]}); fetch this file "
            "again",
            "damaged",
        ) from error
    if len(p) and not 0 <= p.min() <= p.max() <= 1:
        raise DataError(
            f"{path}: events/p has values from {p.min()} to {p.max()}; expected 0 and 1. Check "
            "that the file is an event recording of this data set",
            "value",
        )
    return Events(x, y, t[keep], p)


def _refuse_bomb(path: Path, size: int) -> None:
    """Refuse arrays far larger than their file, before room is made for them."""
    packed = path.stat().st_size
    if size > max(_HARMLESS_BYTES, _RATIO * packed):
        raise DataError(
            f"{path} is damaged: its {packed} bytes claim to hold {size} bytes of events; fetch "
            "this file again",
            "damaged",
        )


def import_h5py() -> Any:
    """The module h5py, with the filters that event files are packed by if they are installed.

    Raises:
        DataError: h5py is not installed.
    """
    try:
        module = import_module("h5py")
    except ImportError as error:
        raise DataError(
            f"event files are HDF5, and h5py cannot be imported ({error}); "
            "pip install '.[muses]' in the clone of fastseg"
        ) from error
    with suppress(ImportError):  # plain and gzip-packed files need no filter
        import_module("hdf5plugin")
    return module


def _dataset(file: Any, name: str, path: Path) -> Any:
    key = f"events/{name}"
    if key not in file:
        raise DataError(
            f"{path} has no array {key}; expected events/x, y, t and p. Check that the file is an "
            "event recording of this data set",
            "value",
        )
    return file[key]


def _absent_filters(h5py: Any, path: Path) -> list[str]:
    """Name and number of the filters that the events of a file need and h5py does not have."""
    found: dict[int, str] = {}
    with suppress(OSError, KeyError, RuntimeError), h5py.File(path, "r") as file:
        for name in Events._fields:
            settings = file[f"events/{name}"].id.get_create_plist()
            for position in range(settings.get_nfilters()):
                number, _, _, known_as = settings.get_filter(position)
                if not h5py.h5z.filter_avail(number):
                    found[number] = f"{known_as.decode(errors='replace') or 'unnamed'} ({number})"
    return list(found.values())
