"""Writing the decoded cache of a split, shard by shard, so that an interrupted run continues."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from ..datasets.split_files import SplitFiles
from ..errors import DataError
from ..loaders.samples import FileStore
from ..native.build import Array
from ..tools.json_values import json_values
from ..tools.prefetch import ThreadPrefetcher
from ..tools.process_pool import usable_cpus
from ..tools.progress import Progress
from ..tools.reading import read_bytes
from ..tools.whole_files import write_whole
from .format import (
    PackedSample,
    Place,
    Shard,
    SourceState,
    read_shard,
    readings,
    same_state,
    source_paths,
    source_state,
)

_ALIGNMENT = 64
"""Arrays start at multiples of this many bytes."""
_NUMBER = "[0-9]" * 5
"""Pattern of a shard's name without its suffix."""
_MARK = ".fastseg-pack"
"""File that tells a folder of shards from one of others."""


@dataclass(frozen=True)
class PackReport:
    """Result of packing: numbers of samples, and bytes."""

    samples: int
    kept: int
    """Samples of shards that were there and up to date."""
    bytes: int
    """Size of all shards."""


def pack_split(
    files: SplitFiles, folder: Path, shard_mib: int = 512, workers: int = 0, progress: bool = True
) -> PackReport:
    """Decode every sample of a split once and write the arrays to ``folder``.

    Shards that are there, whole and made of the same bytes are kept; their checksums are compared.

    Args:
        files: the split, with the modalities to pack.
        folder: made if missing.
        shard_mib: size of a shard; at least one sample.
        workers: threads that decode; 0 for one per CPU.
        progress: show a bar.

    Raises:
        DataError: a file cannot be decoded, the disk is too small, or the folder holds other files.
    """
    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{_NUMBER}.bin.partial"):
        leftover.unlink()
    first = _decode(files, 0)
    size = sum(_padded(array.nbytes) for array in first.arrays if array is not None)
    each = _samples_per_shard(size, shard_mib)
    parts = [range(i, min(i + each, len(files))) for i in range(0, len(files), each)]
    _remove_surplus(folder, len(parts))
    kept = total = 0
    with Progress(f"packing {files.split}", len(files), shown=progress, unit="sample") as shown:
        for number, part in enumerate(parts):
            path = folder / f"{number:05d}.json"
            if _current(files, part, path):
                kept += len(part)
                shown.advance(len(part))
            else:
                _check_space(folder, size * len(part))
                _write(files, part, path, workers, shown.advance)
            total += path.with_suffix(".bin").stat().st_size
    return PackReport(len(files), kept, total)


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with files of others, whose names may be those of shards."""
    if not folder.is_dir() or (folder / _MARK).exists():
        return
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    # caches of before the mark are known by their JSON files
    if found and not any(_is_shard(path) for path in folder.glob(f"{_NUMBER}.json")):
        raise DataError(
            f"{folder} holds other files, such as {found[0].name}, and is not a decoded cache: "
            "nothing was written. Choose another --out, or remove the folder"
        )


def _is_shard(path: Path) -> bool:
    try:
        content = json_values(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"sha256", "format", "samples"} <= content.keys()


def _samples_per_shard(size: int, shard_mib: int) -> int:
    return max(1, (shard_mib << 20) // size)


@dataclass(frozen=True)
class _Decoded:
    """The arrays of a sample, None for an absent modality, and the state of its files."""

    arrays: tuple[Array | None, ...]
    sources: tuple[SourceState | None, ...]


def _decode(files: SplitFiles, index: int) -> _Decoded:
    store = FileStore(files)
    # the state first: a file that changes while it is decoded must count as changed
    sources = tuple(_with_checksum(path) for path in source_paths(files, index, files.modalities))
    images = [
        None
        if files.is_absent(index, modality)
        else np.ascontiguousarray(store.image(index, modality).transpose(1, 2, 0))
        for modality in files.modalities
    ]
    return _Decoded((*images, store.label(index)), sources)


def _with_checksum(path: Path) -> SourceState | None:
    state = source_state(path)
    return None if state is None else replace(state, crc=zlib.crc32(read_bytes(path)))


def _write(
    files: SplitFiles, part: Sequence[int], path: Path, workers: int, done: Callable[[], object]
) -> None:
    """Write the arrays of a shard, then its JSON file."""
    arrays = path.with_suffix(".bin")
    unfinished = path.with_name(f".{arrays.name}.partial")
    samples: list[PackedSample] = []
    decoded = ThreadPrefetcher(partial(_decode, files), part, workers or usable_cpus())
    try:
        with unfinished.open("wb") as file:
            for index, sample in zip(part, decoded, strict=True):
                samples.append(_append(file, files.sample_ids[index], sample))
                done()
            file.flush()
            os.fsync(file.fileno())
        path.with_name(_MARK).touch()
        # without its JSON file the old shard counts no more
        path.unlink(missing_ok=True)
        os.replace(unfinished, arrays)
    except OSError as error:
        # a full disk is reported without the name of the file
        raise OSError(error.errno, error.strerror, error.filename or str(arrays)) from error
    finally:
        decoded.close()
        unfinished.unlink(missing_ok=True)
    named, label = readings(files.spec, files.modalities)
    write_whole(path, Shard(named, label, tuple(samples)).to_json())


def _append(file: BinaryIO, sample_id: str, sample: _Decoded) -> PackedSample:
    start, crc = file.tell(), 0
    places: list[Place | None] = []
    for array in sample.arrays:
        if array is None:
            places.append(None)
            continue
        places.append(Place(file.tell(), array.shape[0], array.shape[1]))
        content = array.tobytes() + bytes(_padded(array.nbytes) - array.nbytes)
        crc = zlib.crc32(content, crc)
        file.write(content)
    return PackedSample(sample_id, start, file.tell(), crc, tuple(places), sample.sources)


def _current(files: SplitFiles, part: Sequence[int], path: Path) -> bool:
    """True if a shard is whole and made of these samples as they are now.

    Files that were only copied or touched are recognised by their checksum, and noted.
    """
    try:
        shard = read_shard(path)
    except DataError:
        return False
    ids = tuple(files.sample_ids[index] for index in part)
    if (shard.modalities, shard.label) != readings(files.spec, files.modalities):
        return False
    if tuple(sample.id for sample in shard.samples) != ids:
        return False
    samples = []
    with path.with_suffix(".bin").open("rb") as file:
        for index, sample in zip(part, shard.samples, strict=True):
            file.seek(sample.start)
            if zlib.crc32(file.read(sample.end - sample.start)) != sample.crc:
                return False
            sources = [
                _unchanged(source, before)
                for source, before in zip(
                    source_paths(files, index, files.modalities), sample.sources, strict=True
                )
            ]
            if any(now is False for now in sources):
                return False
            samples.append(replace(sample, sources=tuple(now or None for now in sources)))
    if tuple(samples) != shard.samples:
        write_whole(path, replace(shard, samples=tuple(samples)).to_json())
    return True


def _unchanged(path: Path, before: SourceState | None) -> SourceState | Literal[False] | None:
    """The state of a file that holds the same bytes as before; False if it does not."""
    now = source_state(path)
    if same_state(now, before):
        return before
    if now is None or before is None or now.size != before.size:
        return False
    now = _with_checksum(path)
    return now if now is not None and now.crc == before.crc else False


def _remove_surplus(folder: Path, count: int) -> None:
    """Delete shards that a run with larger or fewer ones left behind."""
    for path in folder.glob(f"{_NUMBER}.json"):
        if int(path.stem) >= count:
            path.unlink()
            path.with_suffix(".bin").unlink(missing_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"packing needs about {_size(needed)} more at {folder}, where {_size(free)} are free; "
            "make room, choose another place with --out, or pack fewer modalities or splits",
            "space",
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT
