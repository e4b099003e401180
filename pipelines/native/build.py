"""The C forms of hot loops: from the installed package, the user's cache, or a compiler.

A wheel holds them compiled for several instruction sets, of which the best that this processor has
is taken. Without one they are compiled where a compiler is found, once per machine and version.
Nothing depends on them: each has a NumPy definition with the same bits, which serves where there is
neither or ``FASTSEG_NATIVE=0`` is set.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import recipe

Array = NDArray[Any]
"""uint8 or uint16 codes, or float32 values."""
Functions = dict[str, Any]
"""C functions by name."""
POINTER, STEP, INT, FLOAT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_float

_PACKAGED = Path(__file__).parent
"""Where a wheel has its libraries."""


class Library(NamedTuple):
    """What there is of the C loops.

    Attributes:
        loaded: the library, or None if there is none.
        where: its path, or the reason why there is none.
        origin: ``packaged``, ``cached`` or ``compiled``; empty if there is none.
    """

    loaded: ctypes.CDLL | None
    where: str
    origin: str = ""


@lru_cache(maxsize=1)
def library() -> Library:
    """The library of the package if it is of this source, else the cached one, else a new one."""
    if os.environ.get("FASTSEG_NATIVE", "1") == "0":
        return Library(None, "FASTSEG_NATIVE=0")
    if found := _packaged():
        return found
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Library(None, "no C compiler")
    try:
        path, origin = _built(compiler)
        return Library(ctypes.CDLL(str(path)), str(path), origin)
    except subprocess.CalledProcessError as error:
        return Library(None, f"{compiler} failed: {error.stderr.strip().splitlines()[-1:]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Library(None, f"{compiler} failed: {error}")


def bind(
    loaded: ctypes.CDLL, name: str, dtypes: Sequence[str], *arguments: Any, result: Any = None
) -> Functions:
    """The C functions ``<name>_<dtype>`` with these types."""
    functions = {}
    for dtype in dtypes:
        function = getattr(loaded, f"{name}_{dtype}")
        function.argtypes, function.restype = arguments, result
        functions[f"{name}_{dtype}"] = function
    return functions


def plain(image: Array) -> tuple[Array, tuple[int, int, int]]:
    """``image [C, H, W]`` in a layout that the C forms can walk, and its steps in elements.

    That is rows of pixels, or of packed pixels whose channels are neighbours; others are copied.
    """
    lane, stride, pixel = steps(image)
    planes, packed = pixel == 1, lane == 1 and pixel == len(image)
    if not (planes or packed) or lane <= 0 or stride <= 0:
        image = np.ascontiguousarray(image)
    return image, steps(image)


def steps(image: Array) -> tuple[int, int, int]:
    """Distance of channels, rows and pixels, in elements."""
    lane, stride, pixel = (step // image.itemsize for step in image.strides)
    return lane, stride, pixel


def _packaged() -> Library | None:
    """The first library of the package that this processor and its C library can run."""
    for march in recipe.fitting(recipe.machine(), recipe.features()):
        path = _PACKAGED / recipe.packaged_name(march)
        if path.is_file():
            try:
                return Library(ctypes.CDLL(str(path)), str(path), "packaged")
            except OSError:  # as of another C library: musl, or older than the wheel's
                continue
    return None


def _built(compiler: str) -> tuple[Path, str]:
    """The library in the user's cache, compiled if it is not there, and which of the two it was."""
    folder = _cache()
    path = folder / f"pixels-{recipe.digest(compiler, _machine())}.so"
    if path.is_file():
        return path, "cached"
    handle, partial = tempfile.mkstemp(suffix=".partial", dir=folder)
    os.close(handle)
    try:
        recipe.compile_library([compiler], "native", Path(partial))
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return path, "compiled"


def _cache() -> Path:
    """A folder that is ours alone to write: what lies there will be run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "fastseg"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
        if state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError, AttributeError):  # no home, or no POSIX
        pass
    return Path(tempfile.mkdtemp(prefix="fastseg-"))


def _machine() -> str:
    """Facts that ``-march=native`` depends on: homes are shared between unlike machines."""
    features = recipe.features()
    return recipe.machine() + (" ".join(features) or platform.platform() + platform.processor())
