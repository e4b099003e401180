"""NPY and NPZ files to float32 arrays, without running or allocating what a file asks for."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from ..errors import DataError

_LARGEST = 1 << 30
"""Bytes that a member of an NPZ file may unpack to."""
# what NumPy and zipfile raise on damaged, encrypted or strangely packed files; the header of an
# array is a Python literal, and its parser has errors of its own
_DAMAGE = (
    ValueError,
    EOFError,
    OSError,
    zlib.error,
    zipfile.BadZipFile,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    TypeError,
)


def read_array(data: bytes, path: Path) -> NDArray[np.float32]:
    """The array of an NPY file, or the only one of an NPZ file, as ``[H, W, C]`` float32.

    Values of 8- and 16-bit arrays and of float16 and float32 stay exact.

    Raises:
        DataError: damaged, pickled, not numeric, not an image, or not finite.
    """
    try:
        if data.startswith(b"PK"):
            data = _only_member(data, path)
        array = _parse(data, path)
    except DataError:
        raise
    except _DAMAGE as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is damaged or no NumPy file ({len(data)} bytes; {reason}); fetch this file "
            "again",
            "damaged",
        ) from error
    with np.errstate(over="ignore"):  # reported below, as a file's fault
        values = np.ascontiguousarray(array, np.float32)
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise DataError(
            f"{path}: {bad} of {values.size} values are not finite (NaN, or beyond float32); "
            "replace them, for instance by 0",
            "value",
        )
    return values.reshape(*values.shape[:2], -1)


def _only_member(data: bytes, path: Path) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:5])
            raise DataError(
                f"{path} holds {len(members)} arrays ({names}); expected one. Save the image alone",
                "value",
            )
        if members[0].file_size > _LARGEST:
            raise DataError(
                f"{path} unpacks to {members[0].file_size} bytes, more than any image; do not use "
                "it, fetch it again from where it should come from",
                "damaged",
            )
        return archive.read(members[0])


def _parse(data: bytes, path: Path) -> NDArray[np.generic]:
    """The array, whose size is compared with the file's before anything is allocated."""
    file = io.BytesIO(data)
    version = npy_format.read_magic(file)
    read_header = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"NPY format {version[0]}.{version[1]}")
    shape, fortran, dtype = read_header(file)
    if dtype.kind not in "fui" or len(shape) not in (2, 3) or 0 in shape:
        raise DataError(
            f"{path} holds an array of type {dtype} and shape {shape}; expected numbers in "
            "[H, W] or [H, W, C]. Save the image as float32",
            "value",
        )
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - file.tell() != expected:
        raise EOFError(f"{len(data) - file.tell()} of {expected} bytes of values")
    flat: NDArray[np.generic] = np.frombuffer(data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C")
