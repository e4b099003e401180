"""The C forms of hot loops: compiled where a compiler is found, once per machine and version.

Nothing depends on them: each has a NumPy definition with the same bits, which serves where there is
no compiler or ``FASTSEG_NATIVE=0`` is set.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""uint8 or uint16 codes, or float32 values."""
Functions = dict[str, Any]
"""C functions by name."""
POINTER, STEP, INT, FLOAT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_float

_SOURCE = Path(__file__).with_name("pixels.c")
# contracted or reordered arithmetic would change bits; rintf needs no errno to become one
# instruction
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_PATIENCE_S = 60


@lru_cache(maxsize=1)
def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library and where it lies, or None and the reason."""
    if os.environ.get("FASTSEG_NATIVE", "1") == "0":
        return None, "FASTSEG_NATIVE=0"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None, "no C compiler"
    try:
        path = _built(compiler)
        return ctypes.CDLL(str(path)), str(path)
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {error.stderr.strip().splitlines()[-1:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{compiler} failed: {error}"


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


def _built(compiler: str) -> Path:
    """The library in the user's cache, compiled if it is not there."""
    source = _SOURCE.read_bytes()
    key = hashlib.sha256(b"\0".join((source, repr((compiler, _FLAGS, _machine())).encode())))
    name = f"pixels-{key.hexdigest()[:16]}.so"
    folder = _cache()
    path = folder / name
    if not path.is_file():
        handle, partial = tempfile.mkstemp(suffix=".partial", dir=folder)
        os.close(handle)
        try:
            subprocess.run(
                [compiler, *_FLAGS, "-o", partial, str(_SOURCE), "-lm"],
                check=True,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
            )
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
    return path


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
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return platform.machine() + next((x for x in lines if x.startswith(("flags", "Features"))), "")
