"""Named tensors in safetensors files: written with the user's rights, and compared."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fastseg.errors import listed


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the access rights that the user's umask gives.

    Raises:
        OSError: the system refuses; it names the file.
    """
    # safetensors replaces the file by one that its owner alone may read
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1] or code[2])
        raise OSError(number, os.strerror(number), str(path)) from error
    if path.stat().st_mode != mode:
        path.chmod(mode)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold an infinity or a NaN."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def misfits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Differences of ``found`` from ``wanted`` in names, shapes and dtypes: one line per kind."""
    shared = [name for name in wanted if name in found]
    other = [
        f"{name} {_kind(found[name])} for {_kind(wanted[name])}"
        for name in shared
        if _kind(found[name]) != _kind(wanted[name])
    ]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape or type": other,
    }
    return [f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names]


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
