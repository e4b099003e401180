"""Check of the headers of a split's files, before the first batch of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..datasets.spec import FileSpec, ModalitySpec
from ..datasets.split_files import SplitFiles
from ..errors import DataError
from ..tools.reading import read_bytes, read_ends
from . import png
from .arrays import read_array
from .by_spec import check_width, wrong_size
from .images import check_header

_HEAD, _TAIL = 1 << 16, 1 << 10
"""Bytes of a file that are read from its beginning and its end."""
_THREADS = 16
"""Files that are open at a time: nearly all of the time is spent waiting for a disk or a server."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def image_size(
    path: Path, *, label: bool = False, bits: tuple[int, ...] = (8,), palette: bool = False
) -> tuple[int, int]:
    """Height and width of an image file, from its first and last bytes; see ``check_header``.

    Raises:
        DataError: it cannot be read, or is of a format that ``check_header`` refuses.
    """
    head, tail = read_ends(path, _HEAD, _TAIL)
    data: bytes | None = head
    if tail and head.startswith(png.SIGNATURE):
        data = png.without_pixels(head, tail)
    if data is not None:
        try:
            return check_header(data, path, label=label, bits=bits, palette=palette)
        except DataError:
            if not tail:
                raise
    # a header may be longer than what was read, and a message tells the size of the file
    return check_header(read_bytes(path), path, label=label, bits=bits, palette=palette)


def label_size(files: SplitFiles, index: int) -> tuple[int, int]:
    """Height and width of a label map as it is decoded.

    Raises:
        DataError: as ``image_size``, or nothing of it is left.
    """
    spec = files.spec
    return spec.resize or _cut(files, index, spec.label.file, label=True)


def check_files(files: SplitFiles, indices: Iterable[int]) -> None:
    """Look at the header of every file of some samples.

    Arrays, whose values must be finite as well, are read whole.

    Raises:
        DataError: a file cannot be read, or is of a format or size that cannot be used.
    """
    in_threads(lambda index: _check_sample(files, index), indices)


def in_threads(look: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``look`` at every item, several at a time; the first error in order is raised."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(look, items))


def _check_sample(files: SplitFiles, index: int) -> None:
    spec = files.spec
    size = _cut(files, index, spec.label.file, label=True)
    if spec.label.mask is not None:
        _compare(files, index, spec.label.mask, _cut(files, index, spec.label.mask), size)
    for modality in files.modalities:
        if files.is_absent(index, modality):
            continue
        for file in modality.files:
            own = _own_size(files, index, modality, file)
            if not modality.any_size and spec.resize is None:
                _compare(files, index, file, own, size)


def _own_size(
    files: SplitFiles, index: int, modality: ModalitySpec, file: FileSpec
) -> tuple[int, int]:
    if modality.decoder == "image":
        return _cut(files, index, file, bits=modality.bits)
    path = files.path(index, file)
    height, width, _ = read_array(read_bytes(path), path).shape
    check_width(path, width, files.spec)
    return height, width - files.spec.skip_columns


def _cut(
    files: SplitFiles,
    index: int,
    file: FileSpec,
    *,
    label: bool = False,
    bits: tuple[int, ...] = (8,),
) -> tuple[int, int]:
    """Height and width of what is used of an image file."""
    path = files.path(index, file)
    palette = files.spec.label.coding != "ids"
    height, width = image_size(path, label=label, bits=bits, palette=palette)
    check_width(path, width, files.spec)
    return height, width - files.spec.skip_columns


def _compare(
    files: SplitFiles, index: int, file: FileSpec, own: tuple[int, int], size: tuple[int, int]
) -> None:
    if own != size:
        raise wrong_size(files.path(index, file), own, size)
